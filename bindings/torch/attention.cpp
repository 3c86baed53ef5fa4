// Calls the core's attention on torch tensors: allocates outputs and scratch, reports errors.
#include "attention.h"

#include <torch/csrc/stable/library.h>

#include <cmath>

#include "attn/attn.h"
#include "executor.h"
#include "scratch.h"

namespace attn_torch {
namespace {

struct MaskArguments {
  const std::optional<Tensor>& bias;
  int64_t band_left;
  int64_t band_right;
  int64_t band_anchor;
  double dropout_p;
  const std::optional<Tensor>& dropout_seed;
};

void check(attn_status status, const attn_error& error) {
  STD_TORCH_CHECK(status == ATTN_OK, error.message);
}

// The sizes of an output come from these axes, so they must exist before the core validates.
void check_4d(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.dim() == 4, "attention: expected a 4-D ", name, " [B, M, H, K], got ",
                  tensor.dim(), " dimensions");
}

attn_dropout make_dropout(double p, const std::optional<Tensor>& seed) {
  if (p == 0.0) return {.p = 0.0, .seed = 0, .offset = 0};
  STD_TORCH_CHECK(seed.has_value() && seed->scalar_type() == ScalarType::Long &&
                      seed->numel() == 2 && seed->is_cpu() && seed->is_contiguous(),
                  "attention: dropout needs dropout_seed, a contiguous int64 CPU tensor that holds "
                  "a seed and an offset");
  const auto* words = static_cast<const int64_t*>(seed->const_data_ptr());
  return {
      .p = p, .seed = static_cast<uint64_t>(words[0]), .offset = static_cast<uint64_t>(words[1])};
}

attn_mask make_mask(const MaskArguments& arguments, const attn_tensor* bias) {
  attn_mask mask = ATTN_MASK_INIT;
  mask.band = {.left = arguments.band_left,
               .right = arguments.band_right,
               .anchor = static_cast<int32_t>(arguments.band_anchor),
               .reserved = 0};
  mask.bias = bias;
  mask.dropout = make_dropout(arguments.dropout_p, arguments.dropout_seed);
  return mask;
}

// The core's default is an infinity, which no user means.
double checked_scale(std::optional<double> scale) {
  STD_TORCH_CHECK(!scale || std::isfinite(*scale), "attention: expected a finite scale, got ",
                  *scale);
  return scale.value_or(ATTN_SCALE_DEFAULT);
}

// Allocates and runs one forward; `lse` NULL: not wanted.
Tensor run_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                   const MaskArguments& mask_arguments, std::optional<double> scale,
                   std::optional<ScalarType> output_dtype, const Tensor* lse) {
  check_4d("query", query);
  check_4d("value", value);
  const auto shape = query.sizes();
  const Tensor out = empty({shape[0], shape[1], shape[2], value.size(3)},
                           output_dtype.value_or(query.scalar_type()));

  const attn_tensor query_view = view(query), key_view = view(key), value_view = view(value);
  const attn_tensor out_view = view(out);
  const attn_tensor lse_view = lse ? view(*lse) : attn_tensor{};
  const OptionalView bias_view(mask_arguments.bias);
  const attn_mask mask = make_mask(mask_arguments, bias_view.get());
  const attn_exec exec = torch_executor();
  attn_attention_forward_args args = ATTN_ATTENTION_FORWARD_INIT;
  args.query = &query_view;
  args.key = &key_view;
  args.value = &value_view;
  args.mask = &mask;
  args.scale = checked_scale(scale);
  args.out = &out_view;
  args.lse = lse ? &lse_view : nullptr;
  args.exec = &exec;

  attn_error error;
  size_t scratch_bytes = 0;
  check(attn_attention_forward_workspace(&args, &scratch_bytes, &error), error);
  Scratch scratch(scratch_bytes);
  args.workspace = scratch.data();
  args.workspace_bytes = scratch.bytes();
  check(attn_attention_forward(&args, &error), error);
  return out;
}

}  // namespace

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value,
                 std::optional<Tensor> bias, double dropout_p, std::optional<double> scale,
                 int64_t band_left, int64_t band_right, int64_t band_anchor,
                 std::optional<Tensor> dropout_seed, std::optional<ScalarType> output_dtype) {
  return run_forward(query, key, value,
                     {bias, band_left, band_right, band_anchor, dropout_p, dropout_seed}, scale,
                     output_dtype, nullptr);
}

std::tuple<Tensor, Tensor> attention_forward(const Tensor& query, const Tensor& key,
                                             const Tensor& value, std::optional<Tensor> bias,
                                             double dropout_p, std::optional<double> scale,
                                             int64_t band_left, int64_t band_right,
                                             int64_t band_anchor,
                                             std::optional<Tensor> dropout_seed,
                                             std::optional<ScalarType> output_dtype) {
  check_4d("query", query);
  const auto shape = query.sizes();
  const bool is_double = query.scalar_type() == ScalarType::Double;
  const Tensor lse =
      empty({shape[0], shape[2], shape[1]}, is_double ? ScalarType::Double : ScalarType::Float);
  const Tensor out = run_forward(
      query, key, value, {bias, band_left, band_right, band_anchor, dropout_p, dropout_seed}, scale,
      output_dtype, &lse);
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& query, const Tensor& key, const Tensor& value, std::optional<Tensor> bias,
    double dropout_p, std::optional<double> scale, int64_t band_left, int64_t band_right,
    int64_t band_anchor, std::optional<Tensor> dropout_seed, const Tensor& out, const Tensor& lse,
    const Tensor& grad_out, std::optional<Tensor> grad_lse, bool need_query, bool need_key,
    bool need_value, bool need_bias) {
  STD_TORCH_CHECK(bias.has_value() || !need_bias, "attention: need_bias is set, but bias is None");
  const auto gradient_of = [](const Tensor& input, bool needed) {
    return needed ? empty_contiguous_like(input) : empty({0}, input.scalar_type());
  };
  const Tensor grad_query = gradient_of(query, need_query);
  const Tensor grad_key = gradient_of(key, need_key);
  const Tensor grad_value = gradient_of(value, need_value);
  const Tensor grad_bias = gradient_of(bias ? *bias : query, need_bias);

  const attn_tensor query_view = view(query), key_view = view(key), value_view = view(value);
  const attn_tensor out_view = view(out), lse_view = view(lse), grad_out_view = view(grad_out);
  const attn_tensor grad_query_view = view(grad_query), grad_key_view = view(grad_key);
  const attn_tensor grad_value_view = view(grad_value), grad_bias_view = view(grad_bias);
  const OptionalView bias_view(bias), grad_lse_view(grad_lse);
  const attn_mask mask = make_mask(
      {bias, band_left, band_right, band_anchor, dropout_p, dropout_seed}, bias_view.get());
  const attn_exec exec = torch_executor();
  attn_attention_backward_args args = ATTN_ATTENTION_BACKWARD_INIT;
  args.query = &query_view;
  args.key = &key_view;
  args.value = &value_view;
  args.mask = &mask;
  args.scale = checked_scale(scale);
  args.out = &out_view;
  args.lse = &lse_view;
  args.grad_out = &grad_out_view;
  args.grad_lse = grad_lse_view.get();
  args.grad_query = need_query ? &grad_query_view : nullptr;
  args.grad_key = need_key ? &grad_key_view : nullptr;
  args.grad_value = need_value ? &grad_value_view : nullptr;
  args.grad_bias = need_bias ? &grad_bias_view : nullptr;
  args.exec = &exec;

  attn_error error;
  size_t scratch_bytes = 0;
  check(attn_attention_backward_workspace(&args, &scratch_bytes, &error), error);
  Scratch scratch(scratch_bytes);
  args.workspace = scratch.data();
  args.workspace_bytes = scratch.bytes();
  check(attn_attention_backward(&args, &error), error);
  return {grad_query, grad_key, grad_value, grad_bias};
}

}  // namespace attn_torch
