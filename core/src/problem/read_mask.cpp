// Reads the band, the bias and dropout; refuses the parts that no kernel supports yet.
#include "problem/read_mask.h"

#include <algorithm>
#include <cmath>

#include "problem/growable_struct.h"
#include "problem/philox.h"
#include "problem/refusal.h"

namespace attn {
namespace {

// The size with which attn_mask was born.
constexpr size_t kFirstMaskBytes = offsetof(attn_mask, blocks) + sizeof(attn_blocks);

// More keys than any diagonal can be away from any key, small enough to add without overflow.
constexpr int64_t kBeyondAllKeys = int64_t{1} << 40;

void refuse_later_parts(const attn_mask& mask) {
  const attn_sequences& sequences = mask.sequences;
  const attn_pages& pages = mask.pages;
  const attn_blocks& blocks = mask.blocks;
  if (sequences.q_start || sequences.k_start || sequences.k_len) {
    refuse_unsupported(
        "expected mask's sequences to be NULL, got tensors; no kernel packs "
        "sequences yet, call once per sequence");
  }
  if (pages.block_table || pages.page_size != 0) {
    refuse_unsupported(
        "expected mask's pages to be NULL and 0, got values; no kernel reads pages "
        "yet, gather the keys");
  }
  if (blocks.offsets || blocks.indices || blocks.block_size != 0) {
    refuse_unsupported(
        "expected mask's blocks to be NULL and 0, got values; no kernel skips "
        "blocks yet, pass a bool bias");
  }
}

Band read_band(const attn_band& band, int64_t Mq, int64_t Mkv) {
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
          .shift = band.anchor == ATTN_ANCHOR_BOTTOM_RIGHT ? Mkv - Mq : 0};
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

Scores read_bias(const attn_tensor* bias, TensorReader& reader, const Problem& problem) {
  return reader.scores(
      {.name = "bias",
       .access = Access::kRead,
       .dtypes = only(problem.query.dtype) | only(DType::kFloat32) | only(DType::kBool),
       .axes = {{.letter = "B", .extent = problem.B, .owner = "query", .may_broadcast = true},
                {.letter = "Hq", .extent = problem.Hq, .owner = "query", .may_broadcast = true},
                {.letter = "Mq", .extent = problem.Mq, .owner = "query", .may_broadcast = true},
                {.letter = "Mkv", .extent = problem.Mkv, .owner = "key", .may_broadcast = true}}},
      bias);
}

}  // namespace

const attn_tensor* read_mask(const attn_mask* given, TensorReader& reader, Problem& problem) {
  attn_mask mask = ATTN_MASK_INIT;
  if (given) mask = read_growable("mask", given, mask, kFirstMaskBytes);
  refuse_later_parts(mask);
  problem.band = read_band(mask.band, problem.Mq, problem.Mkv);
  problem.dropout = read_dropout(mask.dropout);
  if (mask.bias) problem.bias = read_bias(mask.bias, reader, problem);
  return mask.bias;
}

}  // namespace attn
