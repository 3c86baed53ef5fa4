// The attn_ops operators as C++ functions on stable-ABI tensors; schemas in register.cpp.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <tuple>
#include <vector>

#include "inputs.h"

namespace attn_torch {

// Shapes as in attn/attention.h: query [B, Mq, Hq, K], out [B, Mq, Hq, Kv], lse [B, Hq, Mq].

// The output alone.
Tensor attention(const Inputs& inputs, std::optional<ScalarType> output_dtype);

// The same where every query sees every key: torch takes a while for each argument of a call.
Tensor unmasked_attention(Tensor query, Tensor key, Tensor value, std::optional<double> scale);

// The output and the lse, which the backward needs.
std::tuple<Tensor, Tensor> attention_forward(const Inputs& inputs,
                                             std::optional<ScalarType> output_dtype);

// What the backward takes beside the forward's inputs.
struct BackwardInputs {
  Tensor out, lse, grad_out;
  std::optional<Tensor> grad_lse;
};

// query, key, value, bias, slopes, table, sink, and position_query, key_table, position_key and
// query_table, in this order.
inline constexpr size_t kNumDifferentiable = 11;
inline constexpr size_t kNumPositions = 4;  // the last of them

// The gradients of those that are needed, without gaps.
std::vector<Tensor> attention_backward(const Inputs& inputs, const BackwardInputs& backward,
                                       const std::array<bool, kNumDifferentiable>& needed);

}  // namespace attn_torch
