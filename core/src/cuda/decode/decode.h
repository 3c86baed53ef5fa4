// Attention of few queries over many keys, split over the keys: what the host sees of it.
#pragma once

#include <cstddef>

#include "cuda/runtime.h"
#include "problem/problem.h"

namespace attn::cuda::decode {

// Whether it is the one to run a call: of the problem, a matter of shapes and the mask's parts
// alone, so that the answer is the same for each of a batch.
bool serves(const ForwardProblem& problem, const DeviceProperties& device);

// Bytes of workspace, at a multiple of 64. Depends on shapes, dtypes and the mask alone.
size_t forward_workspace(const ForwardProblem& problem);

// Queues the whole forward on `stream`.
void forward(const ForwardProblem& problem, void* workspace, void* stream);

}  // namespace attn::cuda::decode
