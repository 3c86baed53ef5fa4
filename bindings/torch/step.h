// The operator of stepwise attention as a C++ function on stable-ABI tensors; schema in
// register.cpp.
#pragma once

#include "step_call.h"

namespace attn_torch {

// The output [B, 1, Hq, Kv] of one step. Writes a slot of each ring, and position. Letters, shapes
// and meaning as in attn/step.h.
Tensor attention_step_(const Tensor& query, const Tensor& key, const Tensor& value,
                       const StepInputs& inputs);

}  // namespace attn_torch
