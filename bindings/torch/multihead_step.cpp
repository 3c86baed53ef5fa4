// One operator for a layer's step: between the core's calls there is no tensor of torch's.
#include "multihead_step.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>

#include "attn/attn.h"
#include "executor.h"
#include "inputs.h"

namespace attn_torch {
namespace {

struct LayerShape {
  int64_t streams, query_heads, key_heads, key_width, value_width;

  int64_t query_rows() const { return query_heads * key_width; }
  int64_t key_rows() const { return key_heads * key_width; }
  int64_t value_rows() const { return key_heads * value_width; }
  int64_t packed_width() const { return query_rows() + key_rows() + value_rows(); }
  int64_t attended_width() const { return query_heads * value_width; }
};

void check_projection(const char* name, const Tensor& weight, const std::optional<Tensor>& bias,
                      int64_t width) {
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == width, "step: expected ", name,
                  "_weight to have 2 dimensions, the last of ", width, " features, got ",
                  weight.dim(), " dimensions, the last of ", weight.size(-1));
  STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0)), "step: expected ",
                  name, "_bias to be None or one number for each of the ", weight.size(0),
                  " rows of ", name, "_weight");
}

LayerShape read_shape(const Tensor& x, const Tensor& in_weight, const Tensor& key_ring,
                      const Tensor& value_ring) {
  STD_TORCH_CHECK(x.dim() == 2, "step: expected x [B, E], got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(key_ring.dim() == 4 && value_ring.dim() == 4 && key_ring.size(3) > 0,
                  "step: expected key_ring [B, R, Hkv, K] and value_ring [B, R, Hkv, Kv], got ",
                  key_ring.dim(), " and ", value_ring.dim(), " dimensions");
  LayerShape shape{.streams = x.size(0),
                   .query_heads = 0,
                   .key_heads = key_ring.size(2),
                   .key_width = key_ring.size(3),
                   .value_width = value_ring.size(3)};
  const int64_t query_rows = in_weight.size(0) - shape.packed_width();
  STD_TORCH_CHECK(query_rows >= 0 && query_rows % shape.key_width == 0,
                  "step: expected in_weight to have Hq * ", shape.key_width, " + ",
                  shape.packed_width(), " rows, as the rings have it, got ", in_weight.size(0),
                  "; stack the weights of query, key and value");
  shape.query_heads = query_rows / shape.key_width;
  return shape;
}

attn_linear_args projection(const attn_tensor* x, const attn_tensor* weight,
                            const attn_tensor* bias, const attn_tensor* out,
                            const attn_exec* exec) {
  attn_linear_args args = ATTN_LINEAR_INIT;
  args.x = x;
  args.weight = weight;
  args.bias = bias;
  args.out = out;
  args.exec = exec;
  return args;
}

// Validates every call before the first one writes.
void run_all(attn_linear_args& before, StepCall& step, attn_linear_args& after,
             const Tensor& beside) {
  Scratch scratch(std::max({validate(before, &attn_linear_workspace), step.workspace(),
                            validate(after, &attn_linear_workspace)}),
                  beside);
  run_validated(before, &attn_linear, scratch);
  step.run(scratch);
  run_validated(after, &attn_linear, scratch);
}

}  // namespace

Tensor multihead_attention_step_(const Tensor& x, const Tensor& in_weight,
                                 std::optional<Tensor> in_bias, const Tensor& out_weight,
                                 std::optional<Tensor> out_bias, const Tensor& key_ring,
                                 const Tensor& value_ring, const Tensor& position, int64_t window,
                                 std::optional<Tensor> padding, std::optional<Tensor> padding_ring,
                                 std::optional<Tensor> active, std::optional<Tensor> bias,
                                 std::optional<double> scale, std::optional<Tensor> extra_key,
                                 std::optional<Tensor> extra_value,
                                 std::optional<Tensor> query_ring) {
  const LayerShape shape = read_shape(x, in_weight, key_ring, value_ring);
  check_projection("in", in_weight, in_bias, x.size(1));
  check_projection("out", out_weight, out_bias, shape.attended_width());
  const int64_t B = shape.streams, packed_width = shape.packed_width();
  const int64_t attended_width = shape.attended_width(), element = x.element_size();
  Scratch rows(static_cast<size_t>(B * (packed_width + attended_width) * element), x);
  char* packed = static_cast<char*>(rows.data());
  char* attended = packed + B * packed_width * element;
  const Tensor out = empty({B, out_weight.size(0)}, x.scalar_type(), x);

  const attn_tensor x_view = view(x), in_view = view(in_weight), out_weight_view = view(out_weight),
                    key_ring_view = view(key_ring), value_ring_view = view(value_ring),
                    position_view = view(position), out_view = view(out);
  const OptionalView in_bias_view(in_bias), out_bias_view(out_bias), padding_view(padding),
      padding_ring_view(padding_ring), active_view(active), bias_view(bias),
      query_ring_view(query_ring);
  const auto heads_of = [&](char* first, int64_t stride, int64_t heads, int64_t width) {
    return ScratchView<4>(x_view, first, {B, 1, heads, width}, {stride, stride, width, 1});
  };
  char* packed_key = packed + shape.query_rows() * element;
  char* packed_value = packed_key + shape.key_rows() * element;
  const auto query = heads_of(packed, packed_width, shape.query_heads, shape.key_width);
  const auto key = heads_of(packed_key, packed_width, shape.key_heads, shape.key_width);
  const auto value = heads_of(packed_value, packed_width, shape.key_heads, shape.value_width);
  const auto heads_out = heads_of(attended, attended_width, shape.query_heads, shape.value_width);
  const ScratchView<2> rows_in(x_view, packed, {B, packed_width}, {packed_width, 1});
  const ScratchView<2> rows_out(x_view, attended, {B, attended_width}, {attended_width, 1});

  const DeviceOfCall device(x);
  const attn_exec exec = device.executor();
  attn_linear_args before = projection(&x_view, &in_view, in_bias_view.get(), rows_in.get(), &exec);
  attn_linear_args after =
      projection(rows_out.get(), &out_weight_view, out_bias_view.get(), &out_view, &exec);
  attn_step_args step = ATTN_STEP_INIT;
  step.query = query.get();
  step.key = key.get();
  step.value = value.get();
  step.key_ring = &key_ring_view;
  step.value_ring = &value_ring_view;
  step.position = &position_view;
  step.window = window;
  step.padding = padding_view.get();
  step.padding_ring = padding_ring_view.get();
  step.active = active_view.get();
  step.bias = bias_view.get();
  step.scale = checked_scale(scale);
  step.out = heads_out.get();
  step.query_ring = query_ring_view.get();
  step.exec = &exec;
  StepCall call(step, {.key = extra_key, .value = extra_value}, x);
  run_all(before, call, after, x);
  return out;
}

}  // namespace attn_torch
