// A step of attention as both operators take it: the core's, and the keys that every step sees
// besides those of its ring.
#pragma once

#include <array>
#include <cstddef>
#include <optional>

#include "attn/attn.h"
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

// Validates a call by its workspace query, and returns the bytes it needs.
template <class Args, class Workspace>
size_t validate(const Args& args, Workspace* workspace) {
  attn_error error;
  size_t bytes = 0;
  check(workspace(&args, &bytes, &error), error);
  return bytes;
}

template <class Args, class Call>
void run_validated(Args& args, Call* call, Scratch& scratch) {
  attn_error error;
  args.workspace = scratch.data();
  args.workspace_bytes = scratch.bytes();
  check(call(&args, &error), error);
}

// Keys and values that all streams see at every step, as operators take them: both or neither.
struct ExtraRows {
  std::optional<Tensor> key;    // [E, Hkv, K]
  std::optional<Tensor> value;  // [E, Hkv, Kv]
};

// attn_step; with extra rows also attention to these, and both merged.
class StepCall {
 public:
  // `step` has all but its workspace.
  StepCall(const attn_step_args& step, const ExtraRows& extra, const Tensor& beside);
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

  attn_step_args step_;
  std::optional<Extra> extra_;
};

}  // namespace attn_torch
