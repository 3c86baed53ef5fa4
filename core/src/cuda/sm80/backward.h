// The backward on mma.sync, for every GPU from sm_75 on: what the host sees of it.
#pragma once

#include <cstddef>

#include "cuda/runtime.h"
#include "problem/problem.h"

namespace attn::cuda::sm80 {

// Bytes of workspace, at a multiple of 64. Depends on shapes, dtypes and the mask alone.
size_t backward_workspace(const BackwardProblem& problem, const DeviceProperties& device);

// Queues the whole backward on `stream`; the problem is one that cuda/attention.cpp accepts.
void backward(const BackwardProblem& problem, const DeviceProperties& device, void* workspace,
              void* stream);

}  // namespace attn::cuda::sm80
