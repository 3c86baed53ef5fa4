// Validates the arguments of one merge and translates them into a MergeProblem.
#pragma once

#include <memory>

#include "attn/merge.h"
#include "problem/merge_problem.h"
#include "problem/resources.h"

namespace attn {

struct MergeForwardCall {
  MergeForwardProblem problem;
  std::unique_ptr<MergeChunk[]> chunks;  // the problem's
  Resources resources;
};

struct MergeBackwardCall {
  MergeBackwardProblem problem;
  std::unique_ptr<MergeChunk[]> chunks;
  Resources resources;
};

// Both throw Refusal.
MergeForwardCall read_merge_forward(const attn_merge_forward_args* args);
MergeBackwardCall read_merge_backward(const attn_merge_backward_args* args);

}  // namespace attn
