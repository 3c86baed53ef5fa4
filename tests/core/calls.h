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

// The arrays of one problem. What a mask is made of exists only where it is added.
struct Arrays {
  Array query, key, value, out, lse, grad_out, grad_lse;
  Array grad_query, grad_key, grad_value;
  Array bias, slopes, table, sink;
  Array grad_bias, grad_slopes, grad_table, grad_sink;
  Array position_query, key_table, position_key, query_table;
  Array grad_position_query, grad_key_table, grad_position_key, grad_query_table;
  Array key_table_rows, query_table_rows;                        // int32
  Array q_start, k_start, k_len, block_table, offsets, indices;  // int32

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

  // Numbers per query head. Slopes are small, for they multiply distances.
  void add_slopes(attn_dtype dtype, unsigned seed) {
    slopes = Array::random(dtype, {query.extent(2)}, seed);
    for (int64_t i = 0; i < slopes.size(); ++i) slopes.set(i, slopes.get(i) / 64);
    grad_slopes = Array(dtype, slopes.shape());
  }
  void add_table(attn_dtype dtype, int64_t radius, unsigned seed) {
    table = Array::random(dtype, {query.extent(2), 2 * radius + 1}, seed);
    grad_table = Array(dtype, table.shape());
  }
  // Positions of queries with a key table, or of keys with a query table. A table of all heads has
  // `heads` 1. Numbers are small: as many products are summed as in query . key.
  void add_query_positions(attn_dtype dtype, int64_t width, int64_t rows, int64_t heads,
                           unsigned seed) {
    const auto& s = query.shape();
    position_query = small(dtype, {s[0], s[1], s[2], width}, seed);
    key_table = small(dtype, {heads, rows, width}, seed + 1);
    grad_position_query = Array(dtype, position_query.shape());
    grad_key_table = Array(dtype, key_table.shape());
  }
  void add_key_positions(attn_dtype dtype, int64_t width, int64_t rows, int64_t heads,
                         unsigned seed) {
    position_key = small(dtype, {key.extent(0), key.extent(1), query.extent(2), width}, seed);
    query_table = small(dtype, {heads, rows, width}, seed + 1);
    grad_position_key = Array(dtype, position_key.shape());
    grad_query_table = Array(dtype, query_table.shape());
  }
  // The same with the query or the key as features.
  void add_content_positions(bool of_keys, attn_dtype dtype, int64_t rows, int64_t heads,
                             unsigned seed) {
    Array& table_of_content = of_keys ? query_table : key_table;
    table_of_content = small(dtype, {heads, rows, query.extent(3)}, seed);
    (of_keys ? grad_query_table : grad_key_table) = Array(dtype, table_of_content.shape());
  }
  void add_sink(attn_dtype dtype, unsigned seed) {
    sink = Array::random(dtype, {query.extent(2)}, seed);
    grad_sink = Array(dtype, sink.shape());
  }

 private:
  static Array small(attn_dtype dtype, const std::vector<int64_t>& shape, unsigned seed) {
    Array array = Array::random(dtype, shape, seed);
    for (int64_t i = 0; i < array.size(); ++i) array.set(i, array.get(i) / 2);
    return array;
  }
};

// Copies of the tensors that a call names, so that a test may spoil shape, strides and all.
struct EditableTensor {
  attn_tensor tensor{};
  int64_t shape[4]{};
  int64_t strides[4]{};

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
  EditableTensor query, key, value, out, lse, grad_out, grad_lse;
  EditableTensor grad_query, grad_key, grad_value;
  EditableTensor bias, slopes, table, sink;
  EditableTensor grad_bias, grad_slopes, grad_table, grad_sink;
  EditableTensor position_query, key_table, position_key, query_table;
  EditableTensor grad_position_query, grad_key_table, grad_position_key, grad_query_table;
  EditableTensor key_table_rows, query_table_rows;
  EditableTensor q_start, k_start, k_len, block_table, offsets, indices;
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
        out(arrays.out),
        lse(arrays.lse),
        grad_out(arrays.grad_out),
        grad_lse(arrays.grad_lse),
        grad_query(arrays.grad_query),
        grad_key(arrays.grad_key),
        grad_value(arrays.grad_value),
        bias(arrays.bias),
        slopes(arrays.slopes),
        table(arrays.table),
        sink(arrays.sink),
        grad_bias(arrays.grad_bias),
        grad_slopes(arrays.grad_slopes),
        grad_table(arrays.grad_table),
        grad_sink(arrays.grad_sink),
        position_query(arrays.position_query),
        key_table(arrays.key_table),
        position_key(arrays.position_key),
        query_table(arrays.query_table),
        grad_position_query(arrays.grad_position_query),
        grad_key_table(arrays.grad_key_table),
        grad_position_key(arrays.grad_position_key),
        grad_query_table(arrays.grad_query_table),
        key_table_rows(arrays.key_table_rows),
        query_table_rows(arrays.query_table_rows),
        q_start(arrays.q_start),
        k_start(arrays.k_start),
        k_len(arrays.k_len),
        block_table(arrays.block_table),
        offsets(arrays.offsets),
        indices(arrays.indices) {
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
    backward.grad_bias = if_exists(grad_bias);
    backward.grad_slopes = if_exists(grad_slopes);
    backward.grad_table = if_exists(grad_table);
    backward.grad_sink = if_exists(grad_sink);
    backward.grad_position_query = if_exists(grad_position_query);
    backward.grad_key_table = if_exists(grad_key_table);
    backward.grad_position_key = if_exists(grad_position_key);
    backward.grad_query_table = if_exists(grad_query_table);
    fill_mask();
  }

  // The mask's tensors; its numbers are the test's to set.
  void fill_mask() {
    mask.bias = if_exists(bias);
    mask.relative = {if_exists(slopes), if_exists(table)};
    mask.sink = if_exists(sink);
    mask.positions.query = if_exists(position_query);
    mask.positions.key_table = if_exists(key_table);
    mask.positions.key = if_exists(position_key);
    mask.positions.query_table = if_exists(query_table);
    mask.positions.key_table_rows = if_exists(key_table_rows);
    mask.positions.query_table_rows = if_exists(query_table_rows);
    mask.sequences.q_start = if_exists(q_start);
    mask.sequences.k_start = if_exists(k_start);
    mask.sequences.k_len = if_exists(k_len);
    mask.pages.block_table = if_exists(block_table);
    mask.blocks.offsets = if_exists(offsets);
    mask.blocks.indices = if_exists(indices);
  }

  static const attn_tensor* if_exists(EditableTensor& t) {
    return t.tensor.ndim > 0 ? t.get() : nullptr;
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
    return {&arrays.grad_query,      &arrays.grad_key,
            &arrays.grad_value,      &arrays.grad_bias,
            &arrays.grad_slopes,     &arrays.grad_table,
            &arrays.grad_sink,       &arrays.grad_position_query,
            &arrays.grad_key_table,  &arrays.grad_position_key,
            &arrays.grad_query_table};
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
