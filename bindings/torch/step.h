// The operator of stepwise attention as a C++ function on stable-ABI tensors; schema in
// register.cpp.
#pragma once

#include <optional>

#include "step_call.h"

namespace attn_torch {

// The output [B, 1, Hq, Kv] of one step. Writes a slot of each ring, and position. Letters, shapes
// and meaning as in attn/step.h; the query that attends sees the extra rows [E, Hkv, ...] besides.
Tensor attention_step_(const Tensor& query, const Tensor& key, const Tensor& value,
                       const Tensor& key_ring, const Tensor& value_ring, const Tensor& position,
                       int64_t window, std::optional<Tensor> padding,
                       std::optional<Tensor> padding_ring, std::optional<Tensor> active,
                       std::optional<Tensor> bias, std::optional<double> scale,
                       std::optional<Tensor> extra_key, std::optional<Tensor> extra_value,
                       std::optional<Tensor> query_ring);

}  // namespace attn_torch
