// Runs a validated call on the device its tensors are on.
#pragma once

#include <cstddef>

#include "problem/read_attention.h"

namespace attn {

// All throw Refusal: before anything is written, unless it is the device that failed.
size_t forward_workspace(const ForwardCall& call);  // bytes
void forward(const ForwardCall& call);
size_t backward_workspace(const BackwardCall& call);  // bytes
void backward(const BackwardCall& call);

}  // namespace attn
