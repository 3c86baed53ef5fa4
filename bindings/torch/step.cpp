// Calls the core's step on torch tensors.
#include "step.h"

#include "attn/attn.h"

namespace attn_torch {

Tensor attention_step_(const Tensor& query, const Tensor& key, const Tensor& value,
                       const StepInputs& inputs) {
  expect(query.dim() == 4 && value.dim() == 4,
         "step: expected 4-D query and value [B, 1, H, K], got ", query.dim(), " and ", value.dim(),
         " dimensions");
  const auto shape = query.sizes();
  const Tensor out =
      empty({shape[0], shape[1], shape[2], value.size(3)}, query.scalar_type(), query);
  const attn_tensor query_view = view(query), key_view = view(key), value_view = view(value),
                    out_view = view(out);
  const DeviceOfCall device(query);
  const attn_exec exec = device.executor();
  StepCall call({.query = &query_view, .key = &key_view, .value = &value_view, .out = &out_view},
                inputs, exec, query);
  Scratch scratch(call.workspace(), query);
  call.run(scratch);
  return out;
}

}  // namespace attn_torch
