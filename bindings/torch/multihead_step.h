// The operator of a whole layer's step as a C++ function on stable-ABI tensors; schema in
// register.cpp.
#pragma once

#include <optional>

#include "step_call.h"

namespace attn_torch {

// The output [B, F] of one step of multi-head attention over ring buffers: projects x [B, E] to
// the rows of query, key and value, which in_weight [Hq K + Hkv K + Hkv Kv, E] stacks, takes
// attn_step with them, and projects what it returns by out_weight [F, Hq Kv]. Writes a slot of each
// ring, and position. Letters, shapes and meaning else as in step.h and attn/linear.h.
Tensor multihead_attention_step_(const Tensor& x, const Tensor& in_weight,
                                 std::optional<Tensor> in_bias, const Tensor& out_weight,
                                 std::optional<Tensor> out_bias, const Tensor& key_ring,
                                 const Tensor& value_ring, const Tensor& position, int64_t window,
                                 std::optional<Tensor> padding, std::optional<Tensor> padding_ring,
                                 std::optional<Tensor> active, std::optional<Tensor> bias,
                                 std::optional<double> scale, std::optional<Tensor> extra_key,
                                 std::optional<Tensor> extra_value,
                                 std::optional<Tensor> query_ring);

}  // namespace attn_torch
