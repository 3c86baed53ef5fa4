// The CUDA side of dispatch: kernels, or in a build without them a refusal.
#pragma once

#include <cstddef>

#include "problem/read_attention.h"
#include "problem/read_merge.h"

namespace attn::cuda {

size_t forward_workspace(const ForwardCall& call);  // bytes
void forward(const ForwardCall& call);
size_t backward_workspace(const BackwardCall& call);  // bytes
void backward(const BackwardCall& call);
void merge_forward(const MergeForwardCall& call);
void merge_backward(const MergeBackwardCall& call);

}  // namespace attn::cuda
