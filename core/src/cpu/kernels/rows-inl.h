// Rows of the problem as the kernels walk them, and the scratch memory they work in.
//
// The G query heads that share a key head are folded: row r of (sequence, key head) is query r % Mq
// of head r / Mq in the group, so that few queries with many heads still fill a tile.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/kernels/operand-inl.h"
#include "problem/problem.h"

namespace attn::cpu {
namespace {

// More query rows per key head than this repay packing the keys.
constexpr int64_t kDecodeRows = 16;

inline bool is_decode(const Problem& p, const Sequence& sequence) {
  return p.G * sequence.Mq <= kDecodeRows;
}

// In a row that sees no more keys than this, roundings to 16 bits do not average out: they are made
// up for.
constexpr int64_t kFewKeys = 32;

inline bool sees_few(const KeyRange& seen) { return seen.end - seen.begin <= kFewKeys; }

struct QueryRow {
  int64_t h;  // query head
  int64_t i;  // query
};

inline QueryRow query_row(const Problem& p, const Sequence& sequence, int64_t key_head, int64_t r) {
  const int64_t group = p.G == 1 ? 0 : r / sequence.Mq;  // a division takes as long as a short row
  return {key_head * p.G + group, r - group * sequence.Mq};
}

// The union of the key ranges of all queries.
inline KeyRange keys_of_all(const Sequence& sequence) {
  if (sequence.Mq == 0) return {0, 0};
  const int64_t last = sequence.Mq - 1;
  return {sequence.keys_of(0).begin, sequence.keys_of(last).end};
}

inline void key_rows(const char** rows, const HeadRows& x, const Sequence& sequence,
                     int64_t key_head, int64_t begin, int64_t n) {
  for (int64_t j = 0; j < n;) {
    const int64_t run = sequence.keys_in_a_row(begin + j, n - j);
    const int64_t row = sequence.key_row(begin + j);
    for (int64_t c = 0; c < run; ++c) rows[j + c] = x.row(sequence.b, row + c, key_head);
    j += run;
  }
}

inline char* query_row_of(const HeadRows& x, const Sequence& sequence, QueryRow at) {
  return x.row(sequence.b, sequence.q_begin + at.i, at.h);
}

inline void query_rows(const char** rows, const Problem& p, const HeadRows& x,
                       const Sequence& sequence, int64_t key_head, int64_t begin, int64_t n) {
  for (int64_t r = 0; r < n; ++r) {
    rows[r] = query_row_of(x, sequence, query_row(p, sequence, key_head, begin + r));
  }
}

template <class Real>
Real& row_scalar(const RowScalars& x, const Sequence& sequence, QueryRow at) {
  return x.at<Real>(sequence.b, at.h, sequence.q_begin + at.i);
}

// Prefetches a row's cache lines into the second-level cache. Always inlined: GCC takes a function
// that only prefetches for one without effect, and drops the call.
[[gnu::always_inline]] inline void prefetch_row(const char* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
}

// The same for what is going to be written, into the first-level cache.
[[gnu::always_inline]] inline void prefetch_row_to_write(const char* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 1, 3);
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

// By a call: a loop over a member's elements would read the member again for each of them.
template <class Real>
void clear(Real* numbers, int64_t n) {
  if (n > 0) std::memset(numbers, 0, static_cast<size_t>(n) * sizeof(Real));
}

// sum += residual * row, `width` elements of `dtype`; `sum` has whole vectors. Elements that are
// not finite are left out: the product with the rounded number has taken them in full.
template <class S>
void add_residual(typename S::Real* sum, typename S::Real residual, const char* row, DType dtype,
                  int64_t width) {
  with_source<SingleOperand<S>>(dtype, [&]<DType kSource>() {
    const auto zero = S::set1(0);
    for (int64_t c = 0; c < width; c += S::kWidth) {
      const auto v = load_elements<S, kSource>(row, c, width);
      const auto finite = S::select(S::equal(S::sub(v, v), zero), v, zero);
      S::store(sum + c, S::fma(S::set1(residual), finite, S::load(sum + c)));
    }
    return true;
  });
}

inline void clear_rows(const HeadRows& x, int64_t begin, int64_t end, int64_t heads,
                       int64_t width) {
  for (int64_t m = begin; x && m < end; ++m) {
    for (int64_t h = 0; h < heads; ++h) {
      std::memset(x.row(0, m, h), 0, static_cast<size_t>(width * element_bytes(x.dtype)));
    }
  }
}

// Calls f(begin, end) for the query rows that no sequence owns.
template <class F>
void each_query_outside_sequences(const Problem& p, F&& f) {
  f(int64_t{0}, int64_t{p.sequences.q_start[0]});
  f(int64_t{p.sequences.q_start[p.sequences.count]}, p.Mq);
}

// Writes what queries that see no key get.
template <class S>
void clear_outside_sequences(const ForwardProblem& p) {
  using Real = typename S::Real;
  each_query_outside_sequences(p, [&](int64_t begin, int64_t end) {
    clear_rows(p.out, begin, end, p.Hq, p.Kv);
    for (int64_t h = 0; p.lse && h < p.Hq; ++h) {
      for (int64_t m = begin; m < end; ++m) {
        p.lse.at<Real>(0, h, m) = -std::numeric_limits<Real>::infinity();
      }
    }
  });
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
