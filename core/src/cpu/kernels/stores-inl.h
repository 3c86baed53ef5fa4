// Writes, clears and adds to rows of the results.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels/arithmetic-inl.h"
#include "cpu/kernels/operand-inl.h"
#include "cpu/kernels/rows-inl.h"
#include "problem/problem.h"

namespace attn::cpu {
namespace {

// Narrows for the one float32 output of a float64 problem: the gradient of a float32 bias.
template <class S>
void store_float32(float* to, typename S::Vec v) {
  if constexpr (sizeof(typename S::Real) == sizeof(float)) {
    S::store(to, v);
  } else {
    alignas(64) typename S::Real lanes[S::kWidth];
    S::store(lanes, v);
    for (int64_t l = 0; l < S::kWidth; ++l) to[l] = static_cast<float>(lanes[l]);
  }
}

// Writes n whole vectors of a row of `dtype`: vector(0), vector(1) and so on.
template <class S, class F>
[[gnu::always_inline]] inline void store_vectors(char* row, DType dtype, int64_t n, F&& vector) {
  const auto store_as = [&]<class Element>(void (*store)(Element*, typename S::Vec)) {
    for (int64_t v = 0; v < n; ++v) {
      store(reinterpret_cast<Element*>(row) + v * S::kWidth, vector(v));
    }
  };
  switch (dtype) {
    case DType::kBFloat16: return store_as(&S::store_bfloat16);
    case DType::kFloat16: return store_as(&S::store_float16);
    case DType::kFloat32: return store_as(&store_float32<S>);
    default: return store_as(&S::store);
  }
}

// Writes the first n Reals of `from`, times `factor`, as a row of `dtype`.
template <class S>
void store_row(char* row, DType dtype, const typename S::Real* from, int64_t n,
               typename S::Real factor) {
  const auto scale = S::set1(factor);
  const int64_t whole = n / S::kWidth;
  const auto scaled = [&](int64_t v) { return S::mul(S::load(from + v * S::kWidth), scale); };
  store_vectors<S>(row, dtype, whole, scaled);
  const int64_t rest = n - whole * S::kWidth;
  if (rest == 0) return;
  alignas(64) char last[S::kWidth * sizeof(typename S::Real)];
  store_vectors<S>(last, dtype, 1, [&](int64_t) { return scaled(whole); });
  const int64_t bytes = element_bytes(dtype);
  std::memcpy(row + whole * S::kWidth * bytes, last, static_cast<size_t>(rest * bytes));
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

// Writes what queries that see no key get.
template <class S>
void clear_outside_sequences(const ForwardProblem& p) {
  using Real = typename S::Real;
  each_query_outside_sequences(p, [&](int64_t begin, int64_t end) {
    clear_rows(p.out, begin, end, p.Hq, p.Kv);
    for (int64_t h = 0; p.lse && h < p.Hq; ++h) {
      for (int64_t m = begin; m < end; ++m) p.lse.at<Real>(0, h, m) = -kInfinity<Real>;
    }
  });
}

}  // namespace
}  // namespace attn::cpu
