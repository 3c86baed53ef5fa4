// The description of a matrix product of packed operands.
#pragma once

#include <cstdint>

#include "cpu/kernels/pack-inl.h"
#include "cpu/kernels/prefetch-inl.h"

namespace attn::cpu {
namespace {

// Slots to prefetch in of the product of a left operand with a pair of tiles' columns.
constexpr int64_t kTilePairSlots = 8;

// C is [rows, columns] Reals, A a left operand of rows * depth units, B a right operand in panels.
template <class Op>
struct Product {
  using Real = typename Op::S::Real;
  const typename Op::Unit* a = nullptr;
  bool a_is_packed = false;  // by pack_rows, or computed: of pieces only if packed
  int64_t a_stride = 0;      // units from row to row; from depth to depth if kDepthMajor
  const typename Op::Unit* b = nullptr;
  int64_t b_depth = 0;  // units of depth the panels were packed with
  int64_t b_begin = 0;  // the unit of that depth at which A's depth begins
  Real* c = nullptr;
  int64_t c_stride = 0;
  int64_t rows = 0;
  int64_t b_columns = 0;  // of B as packed
  int64_t columns = 0;    // wanted, from B's first; C's rows hold them rounded up to whole vectors
  int64_t depth = 0;      // units
  bool accumulate = false;
  bool is_turned = false;  // rounds as the product with A and B exchanged does
  bool is_finite = true;   // all of B
  // Treats 0 * (infinity or NaN) as 0: a probability of 0 keeps what a mask excludes out.
  bool skip_zeros = false;
  // With skip_zeros by tiles: 0 for all of B that is not finite. A's residuals have any sign.
  bool only_finite = false;
  RowPrefetcher* prefetcher = nullptr;  // runs meanwhile, in products by tiles; may be null
};

}  // namespace
}  // namespace attn::cpu
