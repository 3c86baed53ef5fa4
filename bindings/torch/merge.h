// The merge operators as C++ functions on stable-ABI tensors; schemas in register.cpp.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "tensor_view.h"

namespace attn_torch {

// Chunks are a list of tensors, or a list of one tensor that stacks them on a first axis of its
// own. Letters and shapes as in attn/merge.h: each of chunk_outs [B, M, H, Kv], of chunk_lses
// [B, H, M].

// The output [B, M, H, Kv] and the lse [B, H, M] over all chunks.
std::tuple<Tensor, Tensor> merge(std::vector<Tensor> chunk_outs, std::vector<Tensor> chunk_lses,
                                 std::optional<ScalarType> output_dtype);

// The gradients of the tensors in both lists; an empty list where it is not needed.
std::tuple<std::vector<Tensor>, std::vector<Tensor>> merge_backward(std::vector<Tensor> chunk_outs,
                                                                    std::vector<Tensor> chunk_lses,
                                                                    const Tensor& grad_out,
                                                                    std::optional<Tensor> grad_lse,
                                                                    bool need_outs, bool need_lses);

}  // namespace attn_torch
