// A step of attention as both operators take it: the core's, and the keys that every step sees
// besides those of its ring.
#pragma once

#include <array>
#include <cstddef>
#include <optional>

#include "attn/attn.h"
#include "operator_stack.h"
#include "run.h"
#include "tensor_view.h"

namespace attn_torch {

// A tensor in scratch, or a view of another kind than torch has.
template <size_t kDims>
class ScratchView {
 public:
  ScratchView(const attn_tensor& like, void* data, std::array<int64_t, kDims> shape,
              std::array<int64_t, kDims> strides)
      : shape_(shape), strides_(strides), view_(like) {
    view_.data = data;
    view_.shape = shape_.data();
    view_.strides = strides_.data();
    view_.ndim = kDims;
  }
  ScratchView(const ScratchView&) = delete;
  ScratchView& operator=(const ScratchView&) = delete;

  const attn_tensor* get() const { return &view_; }

 private:
  std::array<int64_t, kDims> shape_, strides_;
  attn_tensor view_;
};

// The arguments that both operators end with, in the order of their schemas. Letters, shapes and
// meaning as in attn/step.h; all streams see the extra rows besides, both or neither.
struct StepInputs {
  Tensor key_ring, value_ring, position;
  int64_t window = 0;
  std::optional<Tensor> padding, padding_ring, active, bias;
  std::optional<double> scale;
  std::optional<Tensor> extra_key;    // [E, Hkv, K]
  std::optional<Tensor> extra_value;  // [E, Hkv, Kv]
  std::optional<Tensor> query_ring;
};

StepInputs pop_step_inputs(OperatorStack& stack);

// This step's own rows, and where its result goes.
struct StepRows {
  const attn_tensor* query;
  const attn_tensor* key;
  const attn_tensor* value;
  const attn_tensor* out;
};

// attn_step; with extra rows also attention to these, and both merged.
class StepCall {
 public:
  // Borrows all of it, and works in memory beside `beside`.
  StepCall(const StepRows& rows, const StepInputs& inputs, const attn_exec& exec,
           const Tensor& beside);
  StepCall(const StepCall&) = delete;
  StepCall& operator=(const StepCall&) = delete;

  // Validates all of it, and returns the bytes that `run` needs.
  size_t workspace() const;
  void run(Scratch& scratch);

 private:
  struct Extra {
    // Makes the step's results a part of what is merged into `out`.
    Extra(attn_step_args& step, const Tensor& key_rows, const Tensor& value_rows,
          const Tensor& beside);

    void merge() const;

    const attn_tensor* out;
    const attn_tensor real;  // like out, in the dtype in which the parts are merged
    Scratch memory;
    const ScratchView<4> key, value, ring_out, extra_out;
    const ScratchView<3> ring_lse, extra_lse;
    const ScratchView<4> waited_query;  // where queries wait, the one that attends
    attn_attention_forward_args attend = ATTN_ATTENTION_FORWARD_INIT;
  };

  const attn_tensor key_ring_, value_ring_, position_;
  const OptionalView query_ring_, padding_, padding_ring_, active_, bias_;
  attn_step_args step_ = ATTN_STEP_INIT;
  std::optional<Extra> extra_;
};

}  // namespace attn_torch
