// The parts of the mask that weigh single scores, one query row at a time: biases and dropout.
#pragma once

#include <cstdint>

#include "cpu/kernels/arithmetic-inl.h"
#include "cpu/kernels/blocks-inl.h"
#include "cpu/kernels/operand-inl.h"
#include "cpu/kernels/prefetch-inl.h"
#include "cpu/kernels/rows-inl.h"
#include "cpu/kernels/stores-inl.h"
#include "cpu/simd/vec_array.h"
#include "problem/philox.h"
#include "problem/problem.h"

namespace attn::cpu {
namespace {

template <class Real>
inline Real read_score(const char* at, DType dtype) {
  switch (dtype) {
    case DType::kFloat64: return static_cast<Real>(*reinterpret_cast<const double*>(at));
    case DType::kFloat32: return static_cast<Real>(*reinterpret_cast<const float*>(at));
    case DType::kBFloat16:
      return static_cast<Real>(float_from_bfloat16(*reinterpret_cast<const uint16_t*>(at)));
    case DType::kFloat16:
      return static_cast<Real>(float_from_float16(*reinterpret_cast<const uint16_t*>(at)));
    case DType::kBool: return *at ? Real(0) : -kInfinity<Real>;
    case DType::kInt32:
    case DType::kInt64: break;
  }
  return Real(0);
}

template <class S, DType kSource>
void load_contiguous_scores(typename S::Real* to, const char* row, int64_t n,
                            typename S::Real factor) {
  for (int64_t c = 0; c < n; c += S::kWidth) {
    S::store(to + c, S::mul(load_elements<S, kSource>(row, c, n), S::set1(factor)));
  }
}

// Writes factor * bias[c] for c in [0, n), from `row` on; a keep-mask gives 0 or -infinity.
// `to` has room for n rounded up to whole vectors.
template <class S>
void load_tensor_scores(typename S::Real* to, const Scores& bias, const char* row, int64_t n,
                        typename S::Real factor) {
  using Real = typename S::Real;
  const int64_t step = bias.stride_n * element_bytes(bias.dtype);
  if (bias.stride_n == 1 && bias.dtype != DType::kBool) {
    switch (bias.dtype) {
      case DType::kBFloat16: return load_contiguous_scores<S, DType::kBFloat16>(to, row, n, factor);
      case DType::kFloat16: return load_contiguous_scores<S, DType::kFloat16>(to, row, n, factor);
      case DType::kFloat64: return load_contiguous_scores<S, DType::kFloat64>(to, row, n, factor);
      default: return load_contiguous_scores<S, DType::kFloat32>(to, row, n, factor);
    }
  }
  if (bias.dtype == DType::kBool) {
    const Real excluded = -kInfinity<Real>;
    for (int64_t c = 0; c < n; ++c) to[c] = row[c * step] ? Real(0) : excluded;
    return;
  }
  for (int64_t c = 0; c < n; ++c) to[c] = factor * read_score<Real>(row + c * step, bias.dtype);
}

// A row of scores as masks see it: query i of head h against the keys [begin, begin + n).
struct ScoresAt {
  const Sequence& sequence;
  int64_t h, i, begin, n;
  bool is_kept = false;  // the tensor bias adds nothing to them

  // The distance of key begin from the diagonal.
  int64_t distance() const { return begin - i - sequence.diagonal; }
};

// Whether rows of biases have to be loaded: for a tensor, unless it `is_kept`, for slopes or a
// table, or because it `excludes_blocks` key by key, which are not skipped as a whole.
inline bool has_score_bias(const Problem& p, bool excludes_blocks, bool is_kept = false) {
  return (p.bias && !is_kept) || p.slopes || p.table || excludes_blocks;
}

// What a mask leaves of a tile of keys.
enum class TileMask : uint8_t { kNothing, kPart, kAll };

// What a keep-mask that all rows share leaves of keys [begin, begin + n); kPart of any other bias.
inline TileMask kept_keys(const Problem& p, const Sequence& sequence, int64_t begin, int64_t n) {
  const Scores& mask = p.bias;
  if (mask.dtype != DType::kBool || mask.stride_h != 0 || mask.stride_m != 0) {
    return TileMask::kPart;
  }
  const char* row = mask.row(sequence.b, 0, 0);
  int64_t kept = 0;
  for (int64_t c = 0; c < n;) {
    const int64_t run = sequence.keys_in_a_row(begin + c, n - c);
    const char* at = row + sequence.key_row(begin + c) * mask.stride_n;
    for (int64_t k = 0; k < run; ++k) kept += at[k * mask.stride_n] != 0;
    c += run;
  }
  return kept == n ? TileMask::kAll : kept == 0 ? TileMask::kNothing : TileMask::kPart;
}

template <class S>
void load_tensor_bias(typename S::Real* to, const Scores& bias, const ScoresAt& at) {
  const Sequence& sequence = at.sequence;
  const char* row = bias.row(sequence.b, at.h, sequence.q_begin + at.i);
  for (int64_t c = 0; c < at.n;) {
    const int64_t run = sequence.keys_in_a_row(at.begin + c, at.n - c);
    const int64_t key = sequence.key_row(at.begin + c);
    load_tensor_scores<S>(to + c, bias, row + key * bias.stride_n * element_bytes(bias.dtype), run,
                          static_cast<typename S::Real>(kLog2E));
    c += run;
  }
}

// Asks for what load_tensor_bias is going to read, if it lies close together.
[[gnu::always_inline]] inline void prefetch_tensor_bias(const Problem& p, const ScoresAt& at) {
  if (at.is_kept || p.bias.stride_n != 1) return;
  const Sequence& sequence = at.sequence;
  const int64_t bytes = element_bytes(p.bias.dtype);
  const char* row = p.bias.row(sequence.b, at.h, sequence.q_begin + at.i);
  prefetch_row(row + sequence.key_row(at.begin) * bytes, at.n * bytes);
}

template <class Real>
void add_number(Real* to, int64_t n, Real number) {
  for (int64_t c = 0; c < n; ++c) to[c] += number;
}

// Writes -slope * |distance| in base 2, or adds it to what is there.
template <class S>
void load_slope(typename S::Real* to, const HeadParameters& slopes, const ScoresAt at, bool adds) {
  using Real = typename S::Real;
  const Real slope = static_cast<Real>(kLog2E) * read_score<Real>(slopes.at(at.h), slopes.dtype);
  auto distance = S::add(S::iota(), S::set1(static_cast<Real>(at.distance())));
  for (int64_t c = 0; c < at.n; c += S::kWidth) {
    const auto length = S::max(distance, S::sub(S::set1(0), distance));
    const auto before = adds ? S::load(to + c) : S::set1(0);
    S::store(to + c, S::fma(length, S::set1(-slope), before));
    distance = S::add(distance, S::set1(S::kWidth));
  }
}

// Adds table[clamp(distance)], in base 2.
template <class S>
void add_table(typename S::Real* to, const HeadParameters table, const ScoresAt at) {
  using Real = typename S::Real;
  const Real factor = static_cast<Real>(kLog2E);
  const int64_t R = table.width / 2, distance = at.distance(), n = at.n;
  const auto entry = [&](int64_t index) {
    return factor * read_score<Real>(table.at(at.h, index), table.dtype);
  };
  const auto clamped = [n](int64_t c) { return c < 0 ? 0 : c < n ? c : n; };
  const int64_t from = clamped(-R - distance);  // the first key that is not too far left
  const int64_t end = clamped(R + 1 - distance);
  if (from > 0) add_number(to, from, entry(0));
  if (table.dtype == DType::kFloat32 && table.stride == 1) {
    const float* entries = reinterpret_cast<const float*>(table.at(at.h)) + R + distance;
    for (int64_t c = from; c < end; ++c) to[c] += factor * static_cast<Real>(entries[c]);
  } else {
    for (int64_t c = from; c < end; ++c) to[c] += entry(R + distance + c);
  }
  if (end < n) add_number(to + end, n - end, entry(2 * R));
}

// Writes the sum of the biases of a row, in base 2. `to` has room for n and two more vectors.
template <class S>
void load_bias_row(typename S::Real* to, const Problem& p, const ScoresAt& at) {
  const bool has_tensor = p.bias && !at.is_kept;
  if (has_tensor) load_tensor_bias<S>(to, p.bias, at);
  if (p.slopes) load_slope<S>(to, p.slopes, at, has_tensor);
  if (!has_tensor && !p.slopes) clear(to, round_up(at.n, S::kWidth));
  if (p.table) add_table<S>(to, p.table, at);
}

// The same with the keys that block sparsity excludes at -infinity.
template <class S>
void load_bias_row_with_blocks(typename S::Real* to, const Problem& p, const ScoresAt& at) {
  load_bias_row<S>(to, p, at);
  if (p.blocks) exclude_blocks(to, p.blocks, at.h, at.i, at.begin, at.n);
}

// Writes what dropout multiplies the probabilities of a row with: 0 or 1 / (1 - p). `begin` is a
// multiple of kDrawsPerCounter; `to` has room for n rounded up to 64.
template <class Real>
void load_dropout_row(Real* to, const Dropout& dropout, const ScoresAt& at) {
  constexpr int kCounters = 16;
  const uint32_t b = static_cast<uint32_t>(at.sequence.b), h = static_cast<uint32_t>(at.h);
  const uint32_t i = static_cast<uint32_t>(at.sequence.q_begin + at.i);
  const Real keep = static_cast<Real>(dropout.keep_scale);
  for (int64_t c = 0; c < at.n; c += kDrawsPerCounter * kCounters) {
    // A plain loop over counters, so that the compiler runs one counter per vector lane.
    uint32_t draws[kDrawsPerCounter][kCounters];
    for (int l = 0; l < kCounters; ++l) {
      const PhiloxWords words =
          philox4x32_10(b, h, i, static_cast<uint32_t>((at.begin + c) / kDrawsPerCounter + l),
                        dropout.key[0], dropout.key[1]);
      for (int w = 0; w < kDrawsPerCounter; ++w) draws[w][l] = words.w[w];
    }
    for (int l = 0; l < kCounters; ++l) {
      for (int w = 0; w < kDrawsPerCounter; ++w) {
        to[c + kDrawsPerCounter * l + w] = draws[w][l] < dropout.threshold ? Real(0) : keep;
      }
    }
  }
}

}  // namespace
}  // namespace attn::cpu
