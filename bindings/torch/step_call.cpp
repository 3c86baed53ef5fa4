// Takes a step, attends to the extra rows, and merges the two.
#include "step_call.h"

#include <algorithm>

#include "inputs.h"

namespace attn_torch {
namespace {

// `own` is what the step itself has of the same kind.
void check_rows(const char* name, const Tensor& rows, const attn_tensor& own, int64_t count) {
  expect(rows.dim() == 3 && rows.size(0) == count && rows.size(1) == own.shape[2] &&
             rows.size(2) == own.shape[3],
         "step: expected ", name, " [", count, ", ", own.shape[2], ", ", own.shape[3], "], got ",
         rows.dim(), " dimensions, the last of ", rows.size(-1));
  const attn_dtype dtype = view(rows).dtype;
  expect(dtype.code == own.dtype.code && dtype.bits == own.dtype.bits, "step: expected ", name,
         "'s dtype to be that of the step's own rows");
  expect(has_contiguous_rows(rows), "step: expected ", name, "'s last stride to be 1, got ",
         rows.stride(2), "; make its rows contiguous");
}

// Every stream sees the same rows.
ScratchView<4> shared(const Tensor& rows, int64_t streams) {
  return {view(rows),
          const_cast<void*>(rows.const_data_ptr()),
          {streams, rows.size(0), rows.size(1), rows.size(2)},
          {0, rows.stride(0), rows.stride(1), rows.stride(2)}};
}

attn_tensor in_reals(attn_tensor like) {
  if (like.dtype.bits < 32) like.dtype = {ATTN_DTYPE_FLOAT, 32, 1};
  return like;
}

int64_t num_lses(const attn_tensor& out) { return out.shape[0] * out.shape[2]; }
int64_t num_outs(const attn_tensor& out) { return num_lses(out) * out.shape[3]; }
int64_t bytes_of(const attn_tensor& real, int64_t count) { return count * (real.dtype.bits / 8); }

int64_t parts_bytes(const attn_tensor& real) {
  return bytes_of(real, 2 * (num_outs(real) + num_lses(real)));
}

// The part of `memory` from the place-th number on.
ScratchView<4> outs_at(const attn_tensor& real, Scratch& memory, int64_t place) {
  const int64_t H = real.shape[2], Kv = real.shape[3];
  return {real,
          static_cast<char*>(memory.data()) + bytes_of(real, place),
          {real.shape[0], 1, H, Kv},
          {H * Kv, H * Kv, Kv, 1}};
}
ScratchView<3> lses_at(const attn_tensor& real, Scratch& memory, int64_t place) {
  const int64_t H = real.shape[2];
  return {real,
          static_cast<char*>(memory.data()) + bytes_of(real, place),
          {real.shape[0], H, 1},
          {H, 1, 1}};
}

// Memory behind the parts for a query like the step's.
ScratchView<4> query_behind(const attn_tensor& real, Scratch& memory, const attn_tensor& like) {
  const int64_t H = like.shape[2], K = like.shape[3];
  return {like,
          static_cast<char*>(memory.data()) + parts_bytes(real),
          {like.shape[0], 1, H, K},
          {H * K, H * K, K, 1}};
}
int64_t query_bytes(const attn_step_args& step) {
  const attn_tensor& query = *step.query;
  return step.query_ring ? bytes_of(query, query.shape[0] * query.shape[2] * query.shape[3]) : 0;
}

}  // namespace

StepCall::Extra::Extra(attn_step_args& step, const Tensor& key_rows, const Tensor& value_rows,
                       const Tensor& beside)
    : out(step.out),
      real(in_reals(*out)),
      memory(static_cast<size_t>(parts_bytes(real) + query_bytes(step)), beside),
      key(shared(key_rows, out->shape[0])),
      value(shared(value_rows, out->shape[0])),
      ring_out(outs_at(real, memory, 0)),
      extra_out(outs_at(real, memory, num_outs(*out))),
      ring_lse(lses_at(real, memory, 2 * num_outs(*out))),
      extra_lse(lses_at(real, memory, 2 * num_outs(*out) + num_lses(*out))),
      waited_query(query_behind(real, memory, *step.query)) {
  if (step.query_ring) step.attending_query = waited_query.get();
  attend.query = step.query_ring ? waited_query.get() : step.query;
  attend.key = key.get();
  attend.value = value.get();
  attend.scale = step.scale;
  attend.out = extra_out.get();
  attend.lse = extra_lse.get();
  attend.exec = step.exec;
  step.out = ring_out.get();
  step.lse = ring_lse.get();
}

void StepCall::Extra::merge() const {
  const attn_tensor* const outs[] = {ring_out.get(), extra_out.get()};
  const attn_tensor* const lses[] = {ring_lse.get(), extra_lse.get()};
  attn_merge_forward_args args = ATTN_MERGE_FORWARD_INIT;
  args.num_chunks = 2;
  args.chunk_outs = outs;
  args.chunk_lses = lses;
  args.out = out;
  args.exec = attend.exec;
  attn_error error;
  check(attn_merge_forward(&args, &error), error);
}

StepInputs pop_step_inputs(OperatorStack& stack) {
  StepInputs inputs;
  stack.pop(inputs.key_ring, inputs.value_ring, inputs.position, inputs.window, inputs.padding,
            inputs.padding_ring, inputs.active, inputs.bias, inputs.scale, inputs.extra_key,
            inputs.extra_value, inputs.query_ring);
  return inputs;
}

StepCall::StepCall(const StepRows& rows, const StepInputs& inputs, const attn_exec& exec,
                   const Tensor& beside)
    : key_ring_(view(inputs.key_ring)),
      value_ring_(view(inputs.value_ring)),
      position_(view(inputs.position)),
      query_ring_(inputs.query_ring),
      padding_(inputs.padding),
      padding_ring_(inputs.padding_ring),
      active_(inputs.active),
      bias_(inputs.bias) {
  step_.query = rows.query;
  step_.key = rows.key;
  step_.value = rows.value;
  step_.key_ring = &key_ring_;
  step_.value_ring = &value_ring_;
  step_.query_ring = query_ring_.get();
  step_.position = &position_;
  step_.window = inputs.window;
  step_.padding = padding_.get();
  step_.padding_ring = padding_ring_.get();
  step_.active = active_.get();
  step_.bias = bias_.get();
  step_.scale = checked_scale(inputs.scale);
  step_.out = rows.out;
  step_.exec = &exec;
  expect(inputs.extra_key.has_value() == inputs.extra_value.has_value(),
         "step: expected both extra_key and extra_value, or neither");
  if (!inputs.extra_key) return;
  const Tensor &extra_key = *inputs.extra_key, &extra_value = *inputs.extra_value;
  validate(step_, &attn_step_workspace);  // from here on its tensors have the axes they must have
  check_rows("extra_key", extra_key, *step_.key, extra_key.size(0));
  check_rows("extra_value", extra_value, *step_.value, extra_key.size(0));
  extra_.emplace(step_, extra_key, extra_value, beside);
}

size_t StepCall::workspace() const {
  const size_t bytes = validate(step_, &attn_step_workspace);
  if (!extra_) return bytes;
  return std::max(bytes, validate(extra_->attend, &attn_attention_forward_workspace));
}

void StepCall::run(Scratch& scratch) {
  run_validated(step_, &attn_step, scratch);
  if (!extra_) return;
  run_validated(extra_->attend, &attn_attention_forward, scratch);
  extra_->merge();
}

}  // namespace attn_torch
