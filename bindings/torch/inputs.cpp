// Reads the arguments that all attention operators share, and translates them to the C ABI.
#include "inputs.h"

#include <cmath>

#include "expect.h"

namespace attn_torch {
namespace {

attn_dropout make_dropout(double p, const std::optional<Tensor>& seed) {
  if (p == 0.0) return {.p = 0.0, .seed = 0, .offset = 0};
  expect(seed.has_value() && seed->scalar_type() == ScalarType::Long && seed->numel() == 2 &&
             seed->is_cpu() && seed->is_contiguous(),
         "attention: dropout needs dropout_seed, a contiguous int64 CPU tensor that holds "
         "a seed and an offset");
  const auto* words = static_cast<const int64_t*>(seed->const_data_ptr());
  return {
      .p = p, .seed = static_cast<uint64_t>(words[0]), .offset = static_cast<uint64_t>(words[1])};
}

// The core has 32 bits for it, of which some other number may look like an anchor.
int32_t checked_anchor(int64_t anchor) {
  expect(anchor == ATTN_ANCHOR_TOP_LEFT || anchor == ATTN_ANCHOR_BOTTOM_RIGHT,
         "attention: expected band_anchor to be 0 (top left) or 1 (bottom right), got ", anchor);
  return static_cast<int32_t>(anchor);
}

}  // namespace

double checked_scale(std::optional<double> scale) {
  if (!scale) return ATTN_SCALE_DEFAULT;
  expect(std::isfinite(*scale), "attention: expected a finite scale, got ", *scale);
  return *scale;
}

Inputs pop_inputs(OperatorStack& stack) {
  Inputs inputs;
  stack.pop(inputs.query, inputs.key, inputs.value, inputs.bias, inputs.dropout_p, inputs.scale,
            inputs.band_left, inputs.band_right, inputs.band_anchor, inputs.dropout_seed,
            inputs.q_start, inputs.k_start, inputs.k_len, inputs.max_q_len, inputs.max_k_len,
            inputs.block_table, inputs.page_size, inputs.block_offsets, inputs.block_indices,
            inputs.block_size, inputs.slopes, inputs.table, inputs.sink, inputs.softcap);
  return inputs;
}

void pop_positions(OperatorStack& stack, Inputs& inputs) {
  stack.pop(inputs.position_query, inputs.key_table, inputs.position_key, inputs.query_table,
            inputs.zero_row, inputs.key_table_rows, inputs.query_table_rows);
}

InputViews::InputViews(const Inputs& inputs)
    : query_(view(inputs.query)),
      key_(view(inputs.key)),
      value_(view(inputs.value)),
      bias_(inputs.bias),
      q_start_(inputs.q_start),
      k_start_(inputs.k_start),
      k_len_(inputs.k_len),
      block_table_(inputs.block_table),
      block_offsets_(inputs.block_offsets),
      block_indices_(inputs.block_indices),
      slopes_(inputs.slopes),
      table_(inputs.table),
      sink_(inputs.sink),
      position_query_(inputs.position_query),
      key_table_(inputs.key_table),
      position_key_(inputs.position_key),
      query_table_(inputs.query_table),
      key_table_rows_(inputs.key_table_rows),
      query_table_rows_(inputs.query_table_rows),
      mask_(ATTN_MASK_INIT),
      scale_(checked_scale(inputs.scale)) {
  mask_.band = {.left = inputs.band_left,
                .right = inputs.band_right,
                .anchor = checked_anchor(inputs.band_anchor),
                .reserved = 0};
  mask_.bias = bias_.get();
  mask_.dropout = make_dropout(inputs.dropout_p, inputs.dropout_seed);
  mask_.sequences = {.q_start = q_start_.get(),
                     .k_start = k_start_.get(),
                     .k_len = k_len_.get(),
                     .max_q_len = inputs.max_q_len,
                     .max_k_len = inputs.max_k_len};
  mask_.pages = {.block_table = block_table_.get(), .page_size = inputs.page_size};
  mask_.blocks = {.offsets = block_offsets_.get(),
                  .indices = block_indices_.get(),
                  .block_size = inputs.block_size};
  mask_.relative = {.slopes = slopes_.get(), .table = table_.get()};
  mask_.sink = sink_.get();
  mask_.positions = {.query = position_query_.get(),
                     .key_table = key_table_.get(),
                     .key = position_key_.get(),
                     .query_table = query_table_.get(),
                     .zero_row = inputs.zero_row,
                     .key_table_rows = key_table_rows_.get(),
                     .query_table_rows = query_table_rows_.get()};
  mask_.softcap = inputs.softcap;
}

}  // namespace attn_torch
