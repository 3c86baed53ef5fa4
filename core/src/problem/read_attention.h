// Validates the arguments of one attention call and translates them into a Problem.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attn/attention.h"
#include "problem/problem.h"
#include "problem/resources.h"
#include "problem/tensor_reader.h"

namespace attn {

struct ForwardCall {
  ForwardProblem problem;
  Resources resources;
};

struct BackwardCall {
  BackwardProblem problem;
  Resources resources;
};

// Both throw Refusal; `data` says whether the arrays themselves matter.
ForwardCall read_forward(const attn_attention_forward_args* args, TensorReader::Data data);
BackwardCall read_backward(const attn_attention_backward_args* args, TensorReader::Data data);

}  // namespace attn
