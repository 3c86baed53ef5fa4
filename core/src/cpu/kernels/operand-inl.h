// How matrix operands are read, packed and multiplied: one element per 32-bit unit, or a pair.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "problem/problem.h"

namespace attn::cpu {
namespace {

// Reads S::kWidth elements of `row` from `index` on as Reals; those at or past `width` are 0.
// kWhole promises that there are none past it, which keeps loops free of branches.
template <class S, DType kSource, bool kWhole = false>
inline typename S::Vec load_elements(const char* row, int64_t index, int64_t width) {
  using Real = typename S::Real;
  const int64_t left = kWhole ? S::kWidth : width - index;
  if constexpr (kSource == DType::kBFloat16 || kSource == DType::kFloat16) {
    const uint16_t* p = reinterpret_cast<const uint16_t*>(row) + index;
    uint16_t padded[S::kWidth];
    if (left < S::kWidth) {
      std::memset(padded, 0, sizeof padded);
      std::memcpy(padded, p, static_cast<size_t>(left) * sizeof(uint16_t));
      p = padded;
    }
    return kSource == DType::kBFloat16 ? S::load_bfloat16(p) : S::load_float16(p);
  } else {
    using Source = std::conditional_t<kSource == DType::kFloat64, double, float>;
    const Source* p = reinterpret_cast<const Source*>(row) + index;
    if constexpr (sizeof(Source) == sizeof(Real)) {
      if (left >= S::kWidth) return S::load(p);
    }
    Real padded[S::kWidth];
    for (int l = 0; l < S::kWidth; ++l) padded[l] = l < left ? static_cast<Real>(p[l]) : Real(0);
    return S::load(padded);
  }
}

// One element per unit.
template <class Simd>
struct SingleOperand {
  using S = Simd;
  using Unit = typename S::Real;
  using Vec = typename S::Vec;
  using Flag = Vec;
  using ByVectors = SingleOperand;  // what multiplies one row at a time
  struct Registers {};              // that a task sets up for its products: none
  static constexpr int kDepth = 1;  // elements per unit
  static constexpr int kTileRows = S::kTileRows;
  static constexpr DType kDType = sizeof(Unit) == 8 ? DType::kFloat64 : DType::kFloat32;

  static Vec dot(Vec sum, Vec a, Vec b) { return S::fma(a, b, sum); }

  // Units [unit, unit + kWidth) of a row of `width` elements, zero-padded.
  template <DType kSource, bool kWhole = false>
  static Vec load_units(const char* row, int64_t unit, int64_t width) {
    return load_elements<S, kSource, kWhole>(row, unit, width);
  }
  // Lane c holds column + c of kDepth consecutive rows, as far as rows are `present`.
  template <DType kSource>
  static Vec load_columns(const char* const* rows, int64_t, int64_t column, int64_t width) {
    return load_elements<S, kSource>(rows[0], column, width);
  }
  // Writes one vector of Reals as units, or two; `units` may be where they were read from.
  static void store_units(Unit* units, Vec v) { S::store(units, v); }
  static void store_units(Unit* units, Vec first, Vec second) {
    S::store(units, first);
    S::store(units + S::kWidth, second);
  }
  // Stores the units that pair two rows of Reals.
  static void store_paired_rows(Unit*, Vec, Vec) {}

  // 2^x, as exact as a unit of it will be.
  static Vec exp2(Vec x) { return S::exp2(x); }
  // What rounding to a unit takes from v.
  static Vec residual(Vec) { return S::set1(Unit(0)); }

  // v, but 0 if the factor is: 0 * (infinity or NaN) would be NaN.
  static Vec zero_where_zero(const Unit* factor, Vec v) {
    return *factor == Unit(0) ? S::set1(Unit(0)) : v;
  }

  static Flag no_flag() { return S::set1(Unit(0)); }
  static Flag flag_nonfinite(Flag flag, Vec v) { return S::fma(v, S::set1(Unit(0)), flag); }
  static bool is_set(Flag flag) { return !(S::reduce_add(flag) == Unit(0)); }
};

// Returns f<dtype>() for the source dtype; float64 comes with float64 operands only.
template <class Op, class F>
decltype(auto) with_source(DType dtype, F&& f) {
  if constexpr (Op::kDType == DType::kFloat64) {
    return f.template operator()<DType::kFloat64>();
  } else {
    switch (dtype) {
      case DType::kBFloat16: return f.template operator()<DType::kBFloat16>();
      case DType::kFloat16: return f.template operator()<DType::kFloat16>();
      default: return f.template operator()<DType::kFloat32>();
    }
  }
}

// The dot product of two rows, each of a dtype of its own.
template <class S>
typename S::Real dot_rows(const char* x, DType x_dtype, const char* y, DType y_dtype, int64_t n) {
  return with_source<SingleOperand<S>>(x_dtype, [&]<DType kX>() {
    return with_source<SingleOperand<S>>(y_dtype, [&]<DType kY>() {
      auto sum = S::set1(0);
      for (int64_t c = 0; c < n; c += S::kWidth) {
        sum = S::fma(load_elements<S, kX>(x, c, n), load_elements<S, kY>(y, c, n), sum);
      }
      return S::reduce_add(sum);
    });
  });
}

}  // namespace
}  // namespace attn::cpu
