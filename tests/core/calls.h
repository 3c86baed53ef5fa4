// One forward and one backward call with everything they need, ready to be run or spoilt.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "array.h"
#include "attn/attn.h"

struct Shape {
  int64_t B = 2, Mq = 5, Mkv = 7, Hq = 4, Hkv = 2, K = 8, Kv = 6;
};

constexpr char kUnwritten = '\xA5';
constexpr char kGarbage = '\xFF';  // as any floating-point number: NaN

// The arrays of one problem. grad_bias stays empty without a bias.
struct Arrays {
  Array query, key, value, bias, out, lse, grad_out, grad_lse;
  Array grad_query, grad_key, grad_value, grad_bias;

  Arrays(attn_dtype dtype, attn_dtype out_dtype, const Shape& s, unsigned seed) {
    const attn_dtype lse_dtype = same(dtype, kFloat64) ? kFloat64 : kFloat32;
    query = Array::random(dtype, {s.B, s.Mq, s.Hq, s.K}, seed);
    key = Array::random(dtype, {s.B, s.Mkv, s.Hkv, s.K}, seed + 1);
    value = Array::random(dtype, {s.B, s.Mkv, s.Hkv, s.Kv}, seed + 2);
    out = Array(out_dtype, {s.B, s.Mq, s.Hq, s.Kv});
    lse = Array(lse_dtype, {s.B, s.Hq, s.Mq});
    grad_out = Array::random(out_dtype, {s.B, s.Mq, s.Hq, s.Kv}, seed + 3);
    grad_lse = Array::random(lse_dtype, {s.B, s.Hq, s.Mq}, seed + 4);
    grad_query = Array(dtype, query.shape());
    grad_key = Array(dtype, key.shape());
    grad_value = Array(dtype, value.shape());
  }

  void add_bias(attn_dtype dtype, const std::vector<int64_t>& shape, unsigned seed) {
    bias = Array::random(dtype, shape, seed);
    if (!same(dtype, kBool)) grad_bias = Array(dtype, shape);
  }
};

// Copies of the tensors that a call names, so that a test may spoil shape, strides and all.
struct EditableTensor {
  attn_tensor tensor{};
  int64_t shape[4]{};
  int64_t strides[4]{};

  EditableTensor() = default;
  explicit EditableTensor(Array& array) : tensor(*array.tensor()) {
    std::copy_n(tensor.shape, tensor.ndim, shape);
    std::copy_n(tensor.strides, tensor.ndim, strides);
  }
  EditableTensor(const EditableTensor&) = delete;
  EditableTensor& operator=(const EditableTensor&) = delete;

  const attn_tensor* get() {
    tensor.shape = shape;
    tensor.strides = strides;
    return &tensor;
  }
};

// A forward and a backward over the same arrays; members may be edited before either runs.
struct Calls {
  Arrays arrays;
  EditableTensor query, key, value, bias, out, lse, grad_out, grad_lse;
  EditableTensor grad_query, grad_key, grad_value, grad_bias;
  attn_mask mask = ATTN_MASK_INIT;
  attn_exec exec = ATTN_EXEC_INIT;
  attn_attention_forward_args forward = ATTN_ATTENTION_FORWARD_INIT;
  attn_attention_backward_args backward = ATTN_ATTENTION_BACKWARD_INIT;
  GuardedBytes workspace;
  attn_error error{};

  explicit Calls(Arrays given)
      : arrays(std::move(given)),
        query(arrays.query),
        key(arrays.key),
        value(arrays.value),
        bias(arrays.bias),
        out(arrays.out),
        lse(arrays.lse),
        grad_out(arrays.grad_out),
        grad_lse(arrays.grad_lse),
        grad_query(arrays.grad_query),
        grad_key(arrays.grad_key),
        grad_value(arrays.grad_value),
        grad_bias(arrays.grad_bias) {
    const bool has_bias = !arrays.bias.shape().empty();
    if (has_bias) mask.bias = bias.get();
    exec.num_threads = 1;
    forward.query = backward.query = query.get();
    forward.key = backward.key = key.get();
    forward.value = backward.value = value.get();
    forward.mask = backward.mask = &mask;
    forward.out = backward.out = out.get();
    forward.lse = backward.lse = lse.get();
    forward.exec = backward.exec = &exec;
    backward.grad_out = grad_out.get();
    backward.grad_lse = grad_lse.get();
    backward.grad_query = grad_query.get();
    backward.grad_key = grad_key.get();
    backward.grad_value = grad_value.get();
    if (!arrays.grad_bias.shape().empty()) backward.grad_bias = grad_bias.get();
  }

  // Each asks for the workspace, provides it, and runs.
  attn_status run_forward() {
    size_t bytes = 0;
    const attn_status status = attn_attention_forward_workspace(&forward, &bytes, &error);
    if (status != ATTN_OK) return status;
    workspace.assign(bytes, kGarbage);
    forward.workspace = workspace.data();
    forward.workspace_bytes = bytes;
    return attn_attention_forward(&forward, &error);
  }
  attn_status run_backward() {
    size_t bytes = 0;
    const attn_status status = attn_attention_backward_workspace(&backward, &bytes, &error);
    if (status != ATTN_OK) return status;
    workspace.assign(bytes, kGarbage);
    backward.workspace = workspace.data();
    backward.workspace_bytes = bytes;
    return attn_attention_backward(&backward, &error);
  }

  // The arrays that only the forward, or only the backward, writes.
  std::vector<Array*> forward_outputs() { return {&arrays.out, &arrays.lse}; }
  std::vector<Array*> backward_outputs() {
    return {&arrays.grad_query, &arrays.grad_key, &arrays.grad_value, &arrays.grad_bias};
  }
};

inline void mark_unwritten(const std::vector<Array*>& arrays) {
  for (Array* array : arrays) std::fill(array->bytes().begin(), array->bytes().end(), kUnwritten);
}

inline bool is_unwritten(const std::vector<Array*>& arrays) {
  for (Array* array : arrays) {
    for (const char byte : array->bytes()) {
      if (byte != kUnwritten) return false;
    }
  }
  return true;
}
