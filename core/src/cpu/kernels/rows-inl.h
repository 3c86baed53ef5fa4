// Rows of the problem as the kernels walk them, and the scratch memory they work in.
//
// The G query heads that share a key head are folded: row r of (b, key head) is query r % Mq of
// head r / Mq in the group, so that few queries with many heads still fill a tile.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels/operand-inl.h"
#include "problem/problem.h"

namespace attn::cpu {
namespace {

struct QueryRow {
  int64_t h;  // query head
  int64_t i;  // query
};

inline QueryRow query_row(const Problem& p, int64_t key_head, int64_t r) {
  const int64_t group = p.G == 1 ? 0 : r / p.Mq;  // a division takes as long as a short row
  return {key_head * p.G + group, r - group * p.Mq};
}

// The union of the key ranges of rows [begin, end) of one key head.
inline KeyRange keys_of_rows(const Problem& p, int64_t begin, int64_t end) {
  KeyRange all{p.Mkv, 0};
  for (int64_t r = begin; r < end; ++r) {
    const KeyRange keys = p.keys_of(r % p.Mq);
    if (keys.begin >= keys.end) continue;
    all.begin = keys.begin < all.begin ? keys.begin : all.begin;
    all.end = keys.end > all.end ? keys.end : all.end;
  }
  return all.begin < all.end ? all : KeyRange{0, 0};
}

inline void key_rows(const char** rows, const HeadRows& x, int64_t b, int64_t key_head,
                     int64_t begin, int64_t n) {
  for (int64_t j = 0; j < n; ++j) rows[j] = x.row(b, begin + j, key_head);
}

inline void query_rows(const char** rows, const Problem& p, const HeadRows& x, int64_t b,
                       int64_t key_head, int64_t begin, int64_t n) {
  for (int64_t r = 0; r < n; ++r) {
    const QueryRow at = query_row(p, key_head, begin + r);
    rows[r] = x.row(b, at.i, at.h);
  }
}

// Asks for a row's cache lines ahead of use, as far as the second-level cache.
inline void prefetch_row(const char* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
}

// Narrows for the one float32 output of a float64 problem: the gradient of a float32 bias.
template <class S, class Vec>
void store_float32(float* to, Vec v) {
  if constexpr (sizeof(typename S::Real) == sizeof(float)) {
    S::store(to, v);
  } else {
    alignas(64) typename S::Real lanes[S::kWidth];
    S::store(lanes, v);
    for (int64_t l = 0; l < S::kWidth; ++l) to[l] = static_cast<float>(lanes[l]);
  }
}

// Writes the first n Reals of `from`, times `factor`, as a row of `dtype`.
template <class S>
void store_row(char* row, DType dtype, const typename S::Real* from, int64_t n,
               typename S::Real factor) {
  using Real = typename S::Real;
  const auto scale = S::set1(factor);
  for (int64_t c = 0; c < n; c += S::kWidth) {
    const auto v = S::mul(S::load(from + c), scale);
    const int64_t count = n - c < S::kWidth ? n - c : S::kWidth;
    char* at = row + c * element_bytes(dtype);
    alignas(64) char partial[S::kWidth * sizeof(Real)];
    char* to = count == S::kWidth ? at : partial;
    switch (dtype) {
      case DType::kBFloat16: S::store_bfloat16(reinterpret_cast<uint16_t*>(to), v); break;
      case DType::kFloat16: S::store_float16(reinterpret_cast<uint16_t*>(to), v); break;
      case DType::kFloat32: store_float32<S>(reinterpret_cast<float*>(to), v); break;
      default: S::store(reinterpret_cast<Real*>(to), v); break;
    }
    if (to == partial) {
      std::memcpy(at, partial, static_cast<size_t>(count * element_bytes(dtype)));
    }
  }
}

// Hands out pieces of a workspace, each on cache lines of its own; with a null base it measures.
class Scratch {
 public:
  explicit Scratch(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    const int64_t at = used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// How many workers of a call ever get a task, and so need scratch.
inline int64_t busy_workers(int64_t workers, int64_t tasks) {
  return workers < tasks ? workers : tasks;
}

}  // namespace
}  // namespace attn::cpu
