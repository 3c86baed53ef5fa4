// Rows that are weighted and added up, where some hold infinity or NaN.
//
// Such a number must not reach sums that exclude its row, and 0 times it is NaN. Nothing is done
// about that before a sum is NaN; then all of a block's are taken twice more.
#pragma once

#include "cuda/device/products.cuh"

namespace attn::cuda {

// How the rows are read: with such numbers as 0, then as 1 with all others as 0, to find out which
// sums they belong in.
enum class RowsRead { kAsTheyAre, kFiniteOnly, kWhetherNonfinite, kNoMore };

// How they are read once sums were stored.
ATTN_DEVICE RowsRead read_after(RowsRead read) {
  return read == RowsRead::kFiniteOnly ? RowsRead::kWhetherNonfinite : RowsRead::kNoMore;
}

// Calls run(read), which returns how rows are to be read next, until there is nothing more.
// `repeats` is known where it is called: rows that are never read again take no registers for that.
template <bool repeats, class Run>
ATTN_DEVICE void read_rows(RowsRead first, Run&& run) {
  if constexpr (repeats) {
#pragma unroll 1
    while (first != RowsRead::kNoMore) first = run(first);
  } else if (first != RowsRead::kNoMore) {
    run(RowsRead::kAsTheyAre);
  }
}

template <class Element>
struct ElementBits;
template <>
struct ElementBits<Half> {
  static constexpr uint32_t kExponent = 0x7C00, kOne = 0x3C00;
};
template <>
struct ElementBits<BFloat16> {
  static constexpr uint32_t kExponent = 0x7F80, kOne = 0x3F80;
};
template <>
struct ElementBits<float> {
  static constexpr uint32_t kExponent = 0x7F800000, kOne = 0x3F800000;
};

// An element as `read` has it.
template <class Element>
ATTN_DEVICE uint32_t read_element(uint32_t bits, RowsRead read) {
  using Bits = ElementBits<Element>;
  const bool is_finite = (bits & Bits::kExponent) != Bits::kExponent;
  if (read == RowsRead::kWhetherNonfinite) return is_finite ? 0u : Bits::kOne;
  return is_finite ? bits : 0u;
}

// Rewrites the first kRows rows of the tile as `read` has them. By thread `thread` of kThreads;
// barriers before and after are the caller's.
template <int kRows, int kThreads, class Tile>
ATTN_DEVICE void rewrite_rows(const Tile& tile, RowsRead read, int thread = thread_index()) {
  using Element = typename Tile::Element;
  constexpr int kWords = Tile::kWidth * static_cast<int>(sizeof(Element)) / 4;
#pragma unroll 1
  for (int at = thread; at < kRows * kWords; at += kThreads) {
    uint32_t* row = reinterpret_cast<uint32_t*>(tile.at(at / kWords, 0));
    uint32_t& word = row[at % kWords];
    if constexpr (sizeof(Element) == 2) {
      word = read_element<Element>(word & 0xFFFF, read) | read_element<Element>(word >> 16, read)
                                                              << 16;
    } else {
      word = read_element<Element>(word, read);
    }
  }
}

// 1 for each weight that is not 0, so that sums count the rows that they do not exclude.
template <int kColumns>
ATTN_DEVICE void count_weights(Sums<kColumns>& weights) {
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) weights.values[n][e] = weights.values[n][e] != 0.0f ? 1.0f : 0.0f;
  }
}

}  // namespace attn::cuda
