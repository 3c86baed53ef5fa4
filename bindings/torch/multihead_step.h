// The operator of a whole layer's step as a C++ function on stable-ABI tensors; schema in
// register.cpp.
#pragma once

#include <optional>

#include "step_call.h"

namespace attn_torch {

// Both ends of the layer, in the order of the schema: in_weight stacks the weights of query, key
// and value.
struct LayerInputs {
  Tensor x;          // [B, E]
  Tensor in_weight;  // [Hq K + Hkv K + Hkv Kv, E]
  std::optional<Tensor> in_bias;
  Tensor out_weight;  // [F, Hq Kv]
  std::optional<Tensor> out_bias;
};

LayerInputs pop_layer_inputs(OperatorStack& stack);

// The output [B, F] of one step of multi-head attention over ring buffers: projects x to the rows
// of query, key and value, takes attn_step with them, and projects what it returns. Writes a slot
// of each ring, and position. Letters, shapes and meaning else as in step.h and attn/linear.h.
Tensor multihead_attention_step_(const LayerInputs& layer, const StepInputs& step);

}  // namespace attn_torch
