// One forward and one backward merge with everything they need, ready to be run or spoilt.
#pragma once

#include <deque>
#include <vector>

#include "calls.h"

struct MergeShape {
  int64_t chunks = 3, B = 2, M = 5, H = 3, Kv = 6;
};

// The arrays of one list of the arguments, and the tensors that name them.
struct ChunkList {
  std::deque<Array> arrays;  // neither they nor the tensors may move
  std::deque<EditableTensor> tensors;
  std::vector<const attn_tensor*> pointers;

  void add(Array array) {
    arrays.push_back(std::move(array));
    tensors.emplace_back(arrays.back());
    pointers.push_back(tensors.back().get());
  }
  std::vector<Array*> all() {
    std::vector<Array*> result;
    for (Array& array : arrays) result.push_back(&array);
    return result;
  }
};

inline attn_dtype lse_dtype_of(attn_dtype dtype) {
  return same(dtype, kFloat64) ? kFloat64 : kFloat32;
}

// A forward and a backward over the same chunks; members may be edited before either runs.
struct MergeCalls {
  MergeShape shape;
  ChunkList chunk_outs, chunk_lses, grad_chunk_outs, grad_chunk_lses;
  ChunkList results;  // out, lse, grad_out, grad_lse
  attn_exec exec = ATTN_EXEC_INIT;
  attn_merge_forward_args forward = ATTN_MERGE_FORWARD_INIT;
  attn_merge_backward_args backward = ATTN_MERGE_BACKWARD_INIT;
  attn_error error{};

  MergeCalls(attn_dtype dtype, attn_dtype out_dtype, const MergeShape& s) : shape(s) {
    const std::vector<int64_t> out_shape = {s.B, s.M, s.H, s.Kv}, lse_shape = {s.B, s.H, s.M};
    const attn_dtype lse_dtype = lse_dtype_of(dtype);
    for (int64_t c = 0; c < s.chunks; ++c) {
      const unsigned seed = static_cast<unsigned>(c);
      chunk_outs.add(Array::random(dtype, out_shape, 10 + seed));
      chunk_lses.add(Array::random(lse_dtype, lse_shape, 5000 + seed));
      grad_chunk_outs.add(Array(dtype, out_shape));
      grad_chunk_lses.add(Array(lse_dtype, lse_shape));
    }
    results.add(Array(out_dtype, out_shape));
    results.add(Array(lse_dtype, lse_shape));
    results.add(Array::random(out_dtype, out_shape, 3));
    results.add(Array::random(lse_dtype, lse_shape, 4));
    exec.num_threads = 1;
    forward.num_chunks = backward.num_chunks = s.chunks;
    forward.chunk_outs = backward.chunk_outs = chunk_outs.pointers.data();
    forward.chunk_lses = backward.chunk_lses = chunk_lses.pointers.data();
    forward.out = results.pointers[0];
    forward.lse = results.pointers[1];
    backward.grad_out = results.pointers[2];
    backward.grad_lse = results.pointers[3];
    backward.grad_chunk_outs = grad_chunk_outs.pointers.data();
    backward.grad_chunk_lses = grad_chunk_lses.pointers.data();
    forward.exec = backward.exec = &exec;
  }

  Array& out() { return results.arrays[0]; }
  Array& lse() { return results.arrays[1]; }
  Array& grad_out() { return results.arrays[2]; }
  Array& grad_lse() { return results.arrays[3]; }

  attn_status run_forward() { return attn_merge_forward(&forward, &error); }
  attn_status run_backward() { return attn_merge_backward(&backward, &error); }

  // The arrays that only the forward, or only the backward, writes.
  std::vector<Array*> forward_outputs() { return {&out(), &lse()}; }
  std::vector<Array*> backward_outputs() {
    std::vector<Array*> arrays = grad_chunk_outs.all();
    for (Array* array : grad_chunk_lses.all()) arrays.push_back(array);
    return arrays;
  }
};
