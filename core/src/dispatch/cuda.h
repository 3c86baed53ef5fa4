// The CUDA side of dispatch: kernels, or in a build without them a refusal.
#pragma once

#include <cstddef>

#include "problem/read_attention.h"
#include "problem/read_merge.h"
#include "problem/read_step.h"

namespace attn::cuda {

size_t forward_workspace(const ForwardCall& call);  // bytes
void forward(const ForwardCall& call);
size_t backward_workspace(const BackwardCall& call);  // bytes
void backward(const BackwardCall& call);
void merge_forward(const MergeForwardCall& call);
void merge_backward(const MergeBackwardCall& call);
size_t step_workspace(const StepCall& call);  // bytes
void step(const StepCall& call);

}  // namespace attn::cuda
