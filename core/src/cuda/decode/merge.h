// Joins attention over chunks of the keys: what the host sees of it.
#pragma once

#include "problem/merge_problem.h"

namespace attn::cuda::decode {

// Queue the whole merge on `stream`.
void merge_forward(const MergeForwardProblem& problem, void* stream);
void merge_backward(const MergeBackwardProblem& problem, void* stream);

}  // namespace attn::cuda::decode
