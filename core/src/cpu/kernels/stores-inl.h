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
    const int64_t count = smaller(n - c, S::kWidth);
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
