// Calls the core's attention on torch tensors, and allocates its outputs.
#include "attention.h"

#include <utility>

#include "run.h"

namespace attn_torch {
namespace {

// The sizes of an output come from these axes, so they must exist before the core validates.
void check_4d(const char* name, const Tensor& tensor) {
  expect(tensor.dim() == 4, "attention: expected a 4-D ", name, " [B, M, H, K], got ", tensor.dim(),
         " dimensions");
}

// Allocates and runs one forward; `lse` NULL: not wanted.
Tensor run_forward(const Inputs& inputs, std::optional<ScalarType> output_dtype,
                   const Tensor* lse) {
  check_4d("query", inputs.query);
  check_4d("value", inputs.value);
  const auto shape = inputs.query.sizes();
  const Tensor out = empty({shape[0], shape[1], shape[2], inputs.value.size(3)},
                           output_dtype.value_or(inputs.query.scalar_type()), inputs.query);

  const InputViews views(inputs);
  const attn_tensor out_view = view(out);
  const attn_tensor lse_view = lse ? view(*lse) : attn_tensor{};
  attn_attention_forward_args args = ATTN_ATTENTION_FORWARD_INIT;
  views.fill(args);
  args.out = &out_view;
  args.lse = lse ? &lse_view : nullptr;
  run(args, inputs.query, &attn_attention_forward_workspace, &attn_attention_forward);
  return out;
}

// The inputs that may have a gradient; NULL for one that is absent.
std::array<const Tensor*, kNumDifferentiable> differentiable(const Inputs& inputs) {
  const auto pointer = [](const std::optional<Tensor>& tensor) {
    return tensor ? &*tensor : nullptr;
  };
  return {&inputs.query,
          &inputs.key,
          &inputs.value,
          pointer(inputs.bias),
          pointer(inputs.slopes),
          pointer(inputs.table),
          pointer(inputs.sink),
          pointer(inputs.position_query),
          pointer(inputs.key_table),
          pointer(inputs.position_key),
          pointer(inputs.query_table)};
}

}  // namespace

Tensor attention(const Inputs& inputs, std::optional<ScalarType> output_dtype) {
  return run_forward(inputs, output_dtype, nullptr);
}

Tensor unmasked_attention(Tensor query, Tensor key, Tensor value, std::optional<double> scale) {
  Inputs inputs;
  inputs.query = std::move(query);
  inputs.key = std::move(key);
  inputs.value = std::move(value);
  inputs.scale = scale;
  return attention(inputs, std::nullopt);
}

std::tuple<Tensor, Tensor> attention_forward(const Inputs& inputs,
                                             std::optional<ScalarType> output_dtype) {
  check_4d("query", inputs.query);
  const auto shape = inputs.query.sizes();
  const bool is_double = inputs.query.scalar_type() == ScalarType::Double;
  const Tensor lse = empty({shape[0], shape[2], shape[1]},
                           is_double ? ScalarType::Double : ScalarType::Float, inputs.query);
  const Tensor out = run_forward(inputs, output_dtype, &lse);
  return {out, lse};
}

std::vector<Tensor> attention_backward(const Inputs& inputs, const BackwardInputs& backward,
                                       const std::array<bool, kNumDifferentiable>& needed) {
  const auto sources = differentiable(inputs);
  std::vector<Tensor> gradients;
  std::array<attn_tensor, kNumDifferentiable> gradient_views;
  for (size_t i = 0; i < kNumDifferentiable; ++i) {
    if (!needed[i]) continue;
    expect(sources[i],
           "attention: expected gradients of present inputs to be needed, got a need for "
           "that of input ",
           i,
           " of query, key, value, bias, slopes, table, sink, position_query, key_table, "
           "position_key, query_table");
    gradients.push_back(empty_contiguous_like(*sources[i]));
    gradient_views[i] = view(gradients.back());
  }
  const auto wanted = [&](size_t i) { return needed[i] ? &gradient_views[i] : nullptr; };

  const InputViews views(inputs);
  const attn_tensor out_view = view(backward.out), lse_view = view(backward.lse);
  const attn_tensor grad_out_view = view(backward.grad_out);
  const OptionalView grad_lse_view(backward.grad_lse);
  attn_attention_backward_args args = ATTN_ATTENTION_BACKWARD_INIT;
  views.fill(args);
  args.out = &out_view;
  args.lse = &lse_view;
  args.grad_out = &grad_out_view;
  args.grad_lse = grad_lse_view.get();
  args.grad_query = wanted(0);
  args.grad_key = wanted(1);
  args.grad_value = wanted(2);
  args.grad_bias = wanted(3);
  args.grad_slopes = wanted(4);
  args.grad_table = wanted(5);
  args.grad_sink = wanted(6);
  args.grad_position_query = wanted(7);
  args.grad_key_table = wanted(8);
  args.grad_position_key = wanted(9);
  args.grad_query_table = wanted(10);
  run(args, inputs.query, &attn_attention_backward_workspace, &attn_attention_backward);
  return gradients;
}

}  // namespace attn_torch
