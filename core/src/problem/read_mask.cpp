// Reads the parts of the mask that are numbers: band, bias, dropout, and parameters per head.
#include "problem/read_mask.h"

#include <algorithm>
#include <cmath>

#include "problem/growable_struct.h"
#include "problem/philox.h"
#include "problem/read_operands.h"
#include "problem/read_positions.h"
#include "problem/read_sequences.h"
#include "problem/refusal.h"

namespace attn {
namespace {

// More keys than any diagonal can be away from any key, small enough to add without overflow.
constexpr int64_t kBeyondAllKeys = int64_t{1} << 40;

// Kernels divide scores by a cap in float32.
constexpr double kLeastSoftcap = 1e-30, kMostSoftcap = 1e30;

Band read_band(const attn_band& band) {
  if (band.anchor != ATTN_ANCHOR_TOP_LEFT && band.anchor != ATTN_ANCHOR_BOTTOM_RIGHT) {
    refuse_argument(
        "expected mask's band.anchor to be ATTN_ANCHOR_TOP_LEFT (0) or "
        "ATTN_ANCHOR_BOTTOM_RIGHT (1), got %d; pick one",
        band.anchor);
  }
  if (band.reserved != 0) {
    refuse_argument("expected mask's band.reserved to be 0, got %d; initialise with ATTN_MASK_INIT",
                    band.reserved);
  }
  return {.left = std::clamp(band.left, -kBeyondAllKeys, kBeyondAllKeys),
          .right = std::clamp(band.right, -kBeyondAllKeys, kBeyondAllKeys),
          .bottom_right = band.anchor == ATTN_ANCHOR_BOTTOM_RIGHT};
}

Dropout read_dropout(const attn_dropout& dropout) {
  const double p = dropout.p;
  if (!(p >= 0.0 && p <= 1.0)) {
    refuse_argument("expected mask's dropout.p to be in [0, 1], got %g; pass a probability", p);
  }
  if (p == 0.0) return {};
  const auto low = [](uint64_t word) { return static_cast<uint32_t>(word); };
  const auto high = [](uint64_t word) { return static_cast<uint32_t>(word >> 32); };
  const PhiloxWords key = philox4x32_10(low(dropout.offset), high(dropout.offset), 0, 0,
                                        low(dropout.seed), high(dropout.seed));
  return {.enabled = true,
          .key = {key.w[0], key.w[1]},
          .threshold = static_cast<uint32_t>(std::min(std::ceil(p * 0x1p32), 0x1p32 - 1)),
          .keep_scale = p == 1.0 ? 0.0 : 1.0 / (1.0 - p)};
}

HeadParameters read_head_parameters(const char* name, const attn_tensor* given, int ndim,
                                    TensorReader& reader, const Problem& problem) {
  if (!given) return {};
  return reader.head_parameters({.name = name,
                                 .access = Access::kRead,
                                 .dtypes = only(problem.query.dtype) | only(DType::kFloat32),
                                 .axes = {axis("Hq", problem.Hq, "query"), free_axis("2 R + 1")}},
                                ndim, given);
}

void check_table(const HeadParameters& table) {
  if (!table || table.width % 2 == 1) return;
  refuse_argument(
      "expected relative.table's extent 2 R + 1 (axis 1) to be odd, got %lld; its middle is "
      "distance 0",
      static_cast<long long>(table.width));
}

double read_softcap(double softcap) {
  if (!(softcap >= 0.0 && std::isfinite(softcap))) {
    refuse_argument("expected mask's softcap to be finite and >= 0, got %g; 0 switches it off",
                    softcap);
  }
  // What float32 would round to 0 or to infinity caps like the nearest cap that it keeps.
  return softcap == 0.0 ? 0.0 : std::clamp(softcap, kLeastSoftcap, kMostSoftcap);
}

}  // namespace

Scores read_bias(const attn_tensor* bias, Axis keys, TensorReader& reader, const Problem& problem) {
  if (!bias) return {};
  return reader.scores(
      {.name = "bias",
       .access = Access::kRead,
       .dtypes = only(problem.query.dtype) | only(DType::kFloat32) | only(DType::kBool),
       .axes = {broadcast_axis("B", problem.B, "query"), broadcast_axis("Hq", problem.Hq, "query"),
                broadcast_axis("Mq", problem.Mq, "query"), keys}},
      bias);
}

attn_mask read_mask(const attn_mask* given, TensorReader& reader, Problem& problem) {
  attn_mask mask = ATTN_MASK_INIT;
  if (given) mask = read_growable("mask", given, mask);
  problem.band = read_band(mask.band);
  problem.dropout = read_dropout(mask.dropout);
  read_sequences(mask.sequences, mask.pages, reader, problem);
  read_blocks(mask.blocks, reader, problem);
  problem.bias = read_bias(mask.bias, broadcast_axis("Mkv", problem.Mkv, "key"), reader, problem);
  problem.slopes =
      read_head_parameters("relative.slopes", mask.relative.slopes, 1, reader, problem);
  problem.table = read_head_parameters("relative.table", mask.relative.table, 2, reader, problem);
  check_table(problem.table);
  problem.sink = read_head_parameters("sink", mask.sink, 1, reader, problem);
  problem.softcap = read_softcap(mask.softcap);
  problem.positions = read_positions(mask.positions, reader, problem);
  return mask;
}

}  // namespace attn
