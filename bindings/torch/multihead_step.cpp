// One operator for a layer's step: between the core's calls there is no tensor of torch's.
#include "multihead_step.h"

#include <algorithm>

#include "attn/attn.h"

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

// The core, which reads both projections, calls their tensors alike.
void check_rows(const char* name, const char* part, const Tensor& tensor, const Tensor& x) {
  expect(tensor.scalar_type() == x.scalar_type(), "step: expected ", name, part,
         "'s dtype to be that of x; convert one of them");
  expect(has_contiguous_rows(tensor), "step: expected ", name, part, "'s last stride to be 1, got ",
         tensor.stride(-1), "; make its rows contiguous");
}

void check_projection(const char* name, const Tensor& weight, const std::optional<Tensor>& bias,
                      const Tensor& x, int64_t width) {
  expect(weight.dim() == 2 && weight.size(1) == width, "step: expected ", name,
         "_weight to have 2 dimensions, the last of ", width, " features, got ", weight.dim(),
         " dimensions, the last of ", weight.size(-1));
  expect(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0)), "step: expected ", name,
         "_bias to be None or one number for each of the ", weight.size(0), " rows of ", name,
         "_weight");
  check_rows(name, "_weight", weight, x);
  if (bias) check_rows(name, "_bias", *bias, x);
}

LayerShape read_shape(const Tensor& x, const Tensor& in_weight, const Tensor& key_ring,
                      const Tensor& value_ring) {
  expect(x.dim() == 2, "step: expected x [B, E], got ", x.dim(), " dimensions");
  expect(key_ring.dim() == 4 && value_ring.dim() == 4 && key_ring.size(3) > 0,
         "step: expected key_ring [B, R, Hkv, K] and value_ring [B, R, Hkv, Kv], got ",
         key_ring.dim(), " and ", value_ring.dim(), " dimensions");
  LayerShape shape{.streams = x.size(0),
                   .query_heads = 0,
                   .key_heads = key_ring.size(2),
                   .key_width = key_ring.size(3),
                   .value_width = value_ring.size(3)};
  const int64_t query_rows = in_weight.size(0) - shape.packed_width();
  expect(query_rows >= 0 && query_rows % shape.key_width == 0,
         "step: expected in_weight to have Hq * ", shape.key_width, " + ", shape.packed_width(),
         " rows, as the rings have it, got ", in_weight.size(0),
         "; stack the weights of query, key and value");
  shape.query_heads = query_rows / shape.key_width;
  return shape;
}

// What lies between the projections and the step: rows of queries, keys and values that the first
// projection packs, and rows of what was attended to. As the linear layers see them, and as the
// step does.
struct LayerRows {
  LayerRows(const LayerShape& shape, const attn_tensor& like, const Tensor& beside)
      : element(like.dtype.bits / 8),
        memory(static_cast<size_t>(shape.streams * (shape.packed_width() + shape.attended_width()) *
                                   element),
               beside),
        packed(rows(like, 0, shape.streams, shape.packed_width())),
        query(heads(like, 0, shape.query_heads, shape.key_width, packed)),
        key(heads(like, shape.query_rows(), shape.key_heads, shape.key_width, packed)),
        value(heads(like, shape.query_rows() + shape.key_rows(), shape.key_heads, shape.value_width,
                    packed)),
        attended(rows(like, shape.streams * shape.packed_width(), shape.streams,
                      shape.attended_width())),
        heads_out(heads(like, shape.streams * shape.packed_width(), shape.query_heads,
                        shape.value_width, attended)) {}

  const int64_t element;  // bytes
  Scratch memory;
  const ScratchView<2> packed;
  const ScratchView<4> query, key, value;
  const ScratchView<2> attended;
  const ScratchView<4> heads_out;

 private:
  char* at(int64_t place) { return static_cast<char*>(memory.data()) + place * element; }
  ScratchView<2> rows(const attn_tensor& like, int64_t place, int64_t count, int64_t width) {
    return {like, at(place), {count, width}, {width, 1}};
  }
  // The part of `rows` that begins at the place-th number.
  ScratchView<4> heads(const attn_tensor& like, int64_t place, int64_t count, int64_t width,
                       const ScratchView<2>& rows) {
    const int64_t streams = rows.get()->shape[0], stride = rows.get()->shape[1];
    return {like, at(place), {streams, 1, count, width}, {stride, stride, width, 1}};
  }
};

attn_linear_args projection(const attn_tensor* x, const attn_tensor* weight,
                            const attn_tensor* bias, const attn_tensor* out,
                            const attn_exec& exec) {
  attn_linear_args args = ATTN_LINEAR_INIT;
  args.x = x;
  args.weight = weight;
  args.bias = bias;
  args.out = out;
  args.exec = &exec;
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

LayerInputs pop_layer_inputs(OperatorStack& stack) {
  LayerInputs layer;
  stack.pop(layer.x, layer.in_weight, layer.in_bias, layer.out_weight, layer.out_bias);
  return layer;
}

Tensor multihead_attention_step_(const LayerInputs& layer, const StepInputs& step) {
  const Tensor& x = layer.x;
  const LayerShape shape = read_shape(x, layer.in_weight, step.key_ring, step.value_ring);
  check_projection("in", layer.in_weight, layer.in_bias, x, x.size(1));
  check_projection("out", layer.out_weight, layer.out_bias, x, shape.attended_width());
  const Tensor out = empty({shape.streams, layer.out_weight.size(0)}, x.scalar_type(), x);
  const attn_tensor x_view = view(x), in_weight = view(layer.in_weight),
                    out_weight = view(layer.out_weight), out_view = view(out);
  const OptionalView in_bias(layer.in_bias), out_bias(layer.out_bias);
  LayerRows rows(shape, x_view, x);

  const DeviceOfCall device(x);
  const attn_exec exec = device.executor();
  attn_linear_args before = projection(&x_view, &in_weight, in_bias.get(), rows.packed.get(), exec);
  attn_linear_args after =
      projection(rows.attended.get(), &out_weight, out_bias.get(), &out_view, exec);
  StepCall call({.query = rows.query.get(),
                 .key = rows.key.get(),
                 .value = rows.value.get(),
                 .out = rows.heads_out.get()},
                step, exec, x);
  run_all(before, call, after, x);
  return out;
}

}  // namespace attn_torch
