// What every attention operator takes, and how the C ABI sees it.
#pragma once

#include <cstdint>
#include <optional>

#include "operator_stack.h"
#include "tensor_view.h"

namespace attn_torch {

// The arguments that all operators begin with, in the order of their schemas. Letters, shapes and
// meaning as in attn/attention.h and attn/mask.h; a part whose tensors are absent is absent.
struct Inputs {
  Tensor query, key, value;
  std::optional<Tensor> bias;
  double dropout_p = 0.0;
  std::optional<double> scale;
  int64_t band_left = ATTN_UNBOUNDED, band_right = ATTN_UNBOUNDED;
  int64_t band_anchor = ATTN_ANCHOR_TOP_LEFT;
  std::optional<Tensor> dropout_seed;  // int64 [2] on the CPU: seed and offset
  std::optional<Tensor> q_start, k_start, k_len;
  int64_t max_q_len = 0, max_k_len = 0;
  std::optional<Tensor> block_table;
  int64_t page_size = 0;
  std::optional<Tensor> block_offsets, block_indices;
  int64_t block_size = 0;
  std::optional<Tensor> slopes, table, sink;
  double softcap = 0.0;
  std::optional<Tensor> position_query, key_table, position_key, query_table;
  int64_t zero_row = 0;
  std::optional<Tensor> key_table_rows, query_table_rows;
};

// All but positions, which only some operators take, after the others.
Inputs pop_inputs(OperatorStack& stack);
void pop_positions(OperatorStack& stack, Inputs& inputs);

// What stands for `scale` in the C ABI, whose default is an infinity, which no user means.
double checked_scale(std::optional<double> scale);

// The same as the C ABI's structs, which borrow from `inputs` and from one another.
class InputViews {
 public:
  explicit InputViews(const Inputs& inputs);
  InputViews(const InputViews&) = delete;
  InputViews& operator=(const InputViews&) = delete;

  // Sets the fields that attn_attention_forward_args and attn_attention_backward_args share.
  template <class Args>
  void fill(Args& args) const {
    args.query = &query_;
    args.key = &key_;
    args.value = &value_;
    args.mask = &mask_;
    args.scale = scale_;
  }

 private:
  attn_tensor query_, key_, value_;
  OptionalView bias_, q_start_, k_start_, k_len_, block_table_, block_offsets_, block_indices_,
      slopes_, table_, sink_, position_query_, key_table_, position_key_, query_table_,
      key_table_rows_, query_table_rows_;
  attn_mask mask_;
  double scale_;
};

}  // namespace attn_torch
