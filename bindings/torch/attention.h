// The attn_ops operators as C++ functions on stable-ABI tensors; schemas in register.cpp.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>

#include "tensor_view.h"

namespace attn_torch {

// Letters and shapes as in attn/attention.h: query [B, Mq, Hq, K], out [B, Mq, Hq, Kv],
// lse [B, Hq, Mq]. dropout_seed: int64 [2] on the CPU, the seed and offset of attn_dropout.

// The output alone.
Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value,
                 std::optional<Tensor> bias, double dropout_p, std::optional<double> scale,
                 int64_t band_left, int64_t band_right, int64_t band_anchor,
                 std::optional<Tensor> dropout_seed, std::optional<ScalarType> output_dtype);

// The output and the lse, which the backward needs.
std::tuple<Tensor, Tensor> attention_forward(const Tensor& query, const Tensor& key,
                                             const Tensor& value, std::optional<Tensor> bias,
                                             double dropout_p, std::optional<double> scale,
                                             int64_t band_left, int64_t band_right,
                                             int64_t band_anchor,
                                             std::optional<Tensor> dropout_seed,
                                             std::optional<ScalarType> output_dtype);

// The gradients of query, key, value and bias; shape [0] where one is not needed.
std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& query, const Tensor& key, const Tensor& value, std::optional<Tensor> bias,
    double dropout_p, std::optional<double> scale, int64_t band_left, int64_t band_right,
    int64_t band_anchor, std::optional<Tensor> dropout_seed, const Tensor& out, const Tensor& lse,
    const Tensor& grad_out, std::optional<Tensor> grad_lse, bool need_query, bool need_key,
    bool need_value, bool need_bias);

}  // namespace attn_torch
