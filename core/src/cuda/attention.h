// Attention on a GPU: refuses what no kernel does and chooses the one that does the rest.
#pragma once

#include <cstddef>

#include "cuda/runtime.h"
#include "problem/problem.h"

namespace attn::cuda {

// All throw Refusal, before anything is written or queued but for a launch of too many blocks.
size_t forward_workspace(const ForwardProblem& problem, const DeviceProperties& device);  // bytes
size_t backward_workspace(const BackwardProblem& problem, const DeviceProperties& device);

// Queue a call on `stream`, with a workspace at a multiple of 64 bytes.
void forward(const ForwardProblem& problem, const DeviceProperties& device, void* workspace,
             void* stream);
void backward(const BackwardProblem& problem, const DeviceProperties& device, void* workspace,
              void* stream);

}  // namespace attn::cuda
