// Calls the core's step on torch tensors.
#include "step.h"

#include <torch/csrc/stable/library.h>

#include "attn/attn.h"
#include "inputs.h"

namespace attn_torch {

Tensor attention_step_(const Tensor& query, const Tensor& key, const Tensor& value,
                       const Tensor& key_ring, const Tensor& value_ring, const Tensor& position,
                       int64_t window, std::optional<Tensor> padding,
                       std::optional<Tensor> padding_ring, std::optional<Tensor> active,
                       std::optional<Tensor> bias, std::optional<double> scale,
                       std::optional<Tensor> extra_key, std::optional<Tensor> extra_value,
                       std::optional<Tensor> query_ring) {
  STD_TORCH_CHECK(query.dim() == 4 && value.dim() == 4,
                  "step: expected 4-D query and value [B, 1, H, K], got ", query.dim(), " and ",
                  value.dim(), " dimensions");
  const auto shape = query.sizes();
  const Tensor out =
      empty({shape[0], shape[1], shape[2], value.size(3)}, query.scalar_type(), query);

  const attn_tensor views[] = {view(query),      view(key),      view(value), view(key_ring),
                               view(value_ring), view(position), view(out)};
  const OptionalView padding_view(padding), padding_ring_view(padding_ring), active_view(active),
      bias_view(bias), query_ring_view(query_ring);
  attn_step_args args = ATTN_STEP_INIT;
  args.query = &views[0];
  args.key = &views[1];
  args.value = &views[2];
  args.key_ring = &views[3];
  args.value_ring = &views[4];
  args.position = &views[5];
  args.window = window;
  args.padding = padding_view.get();
  args.padding_ring = padding_ring_view.get();
  args.active = active_view.get();
  args.bias = bias_view.get();
  args.scale = checked_scale(scale);
  args.out = &views[6];
  args.query_ring = query_ring_view.get();
  const DeviceOfCall device(query);
  const attn_exec exec = device.executor();
  args.exec = &exec;
  StepCall call(args, {.key = extra_key, .value = extra_value}, query);
  Scratch scratch(call.workspace(), query);
  call.run(scratch);
  return out;
}

}  // namespace attn_torch
