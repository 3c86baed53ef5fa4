// One step over ring buffers on a GPU: what the host sees of it.
#pragma once

#include <cstddef>

#include "cuda/runtime.h"
#include "problem/step_problem.h"

namespace attn::cuda::decode {

// Bytes of workspace, at a multiple of 64. Depends on shapes and dtypes alone.
size_t step_workspace(const StepProblem& problem, const DeviceProperties& device);

// Queues the whole step on `stream`. Throws Refusal before anything is queued.
void step(const StepProblem& problem, const DeviceProperties& device, void* workspace,
          void* stream);

}  // namespace attn::cuda::decode
