// What the lanes of a warp do together. Fragments lie over them as the PTX ISA says: with
// g = lane / 4 and t = lane % 4.
#include <algorithm>

#include "../gpu_arithmetic.h"
#include "block.h"
#include "fail.h"
#include "operations.h"
#include "wavefronts.h"

namespace attn::ptx {
namespace {

void require_all(Lanes lanes) {
  if (lanes != kAllLanes) fail("expected all lanes, got %#x", lanes);
}

void require_full_mask(Warp& warp, int mask) {
  for_each(kAllLanes, [&](int lane) {
    if (as<uint32_t>(warp.values(mask)[lane]) != kAllLanes) {
      fail("expected a mask of all lanes: this machine knows no other");
    }
  });
}

// D = A B + C, whose fragments are the operands: of A registers of one number or a pair each, of B
// half as many. `gather` puts what a register holds to column k, or row k, and further.
template <int K, int kRegistersOfA, class Gather>
void multiply(Warp& warp, const Instruction& instruction, Lanes lanes, const Gather& gather) {
  require_all(lanes);
  const int* const d_of = instruction.operands.data();
  const int* const a_of = d_of + 4;
  const int* const b_of = a_of + kRegistersOfA;
  const int* const c_of = b_of + kRegistersOfA / 2;
  float a[16][K], b[8][K], b_by_depth[K][8], d[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < kRegistersOfA; ++i) {
      gather(a[g + i % 2 * 8], t, i / 2, static_cast<uint32_t>(warp.values(a_of[i])[lane]));
    }
    for (int i = 0; i < kRegistersOfA / 2; ++i) {
      gather(b[g], t, i, static_cast<uint32_t>(warp.values(b_of[i])[lane]));
    }
    for (int i = 0; i < 4; ++i) {
      d[g + i / 2 * 8][2 * t + i % 2] = as<float>(warp.values(c_of[i])[lane]);
    }
  }
  for (int k = 0; k < K; ++k) {
    for (int n = 0; n < 8; ++n) b_by_depth[k][n] = b[n][k];
  }
  gpu::multiply_accumulate(a, b_by_depth, d);
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      warp.values(d_of[i])[lane] = bits_of(d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
    }
  }
}

template <int K, float (*number)(uint16_t)>
void multiply_16_bit(Warp& warp, const Instruction& instruction, Lanes lanes) {
  multiply<K, K / 4>(warp, instruction, lanes, [](float* row, int t, int i, uint32_t pair) {
    row[2 * t + 8 * i] = number(static_cast<uint16_t>(pair));
    row[2 * t + 8 * i + 1] = number(static_cast<uint16_t>(pair >> 16));
  });
}

void multiply_tf32(Warp& warp, const Instruction& instruction, Lanes lanes) {
  multiply<8, 4>(warp, instruction, lanes, [](float* row, int t, int i, uint32_t bits) {
    row[t + 4 * i] = gpu::from_tf32(bits);
  });
}

// Lane l names row l % 8 of matrix l / 8.
template <bool is_transposed>
void load_matrices(Warp& warp, const Instruction& instruction, Lanes lanes) {
  require_all(lanes);
  const int* operands = instruction.operands.data();
  uint16_t rows[kLanes][8];
  Addresses from;
  for (int lane = 0; lane < kLanes; ++lane) {
    from[lane] = warp.values(operands[4])[lane] + warp.values(operands[5])[lane];
    warp.block().shared().read(from[lane], sizeof(rows[lane]), warp.moment(lane), rows[lane]);
  }
  count_wavefronts(warp.block().program(), from, lanes, sizeof(rows[0]));
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto& at = &rows[8 * matrix];
      const uint32_t low = is_transposed ? at[2 * t][g] : at[g][2 * t];
      const uint32_t high = is_transposed ? at[2 * t + 1][g] : at[g][2 * t + 1];
      warp.values(operands[matrix])[lane] = low | high << 16;
    }
  }
}

// shfl.sync d|p, a, b, c, mask: p says whether the source is within the segment, d else is a.
template <class SourceOf>
void shuffle(Warp& warp, const Instruction& instruction, Lanes lanes, const SourceOf& source_of) {
  require_all(lanes);
  const bool has_predicate = instruction.operands.size() == 6;
  const int* sources = &instruction.operands[has_predicate ? 2 : 1];
  require_full_mask(warp, sources[3]);
  uint64_t before[kLanes];
  std::copy_n(warp.values(sources[0]), kLanes, before);
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto by = static_cast<int>(warp.values(sources[1])[lane] & 31);
    const auto clamp = static_cast<int>(warp.values(sources[2])[lane]);
    const int segment = clamp >> 8 & 31;
    const int last = (lane & segment) | (clamp & 31 & ~segment);
    const int source = source_of(lane, by, segment);
    warp.values(instruction.operands[0])[lane] = before[source <= last ? source : lane];
    if (has_predicate) warp.values(instruction.operands[1])[lane] = source <= last;
  }
}

void shuffle_by_xor(Warp& warp, const Instruction& instruction, Lanes lanes) {
  shuffle(warp, instruction, lanes, [](int lane, int by, int) { return lane ^ by; });
}

void shuffle_by_index(Warp& warp, const Instruction& instruction, Lanes lanes) {
  shuffle(warp, instruction, lanes,
          [](int lane, int by, int segment) { return (lane & segment) | (by & ~segment); });
}

void vote_any(Warp& warp, const Instruction& instruction, Lanes lanes) {
  require_all(lanes);
  require_full_mask(warp, instruction.operands[2]);
  bool any = false;
  for_each(lanes, [&](int lane) { any |= warp.values(instruction.operands[1])[lane] & 1; });
  std::fill_n(warp.values(instruction.operands[0]), kLanes, any);
}

}  // namespace

void add_collectives(Table& table) {
  const auto add = [&](const char* opcode, Execute execute) {
    table[opcode] = {.execute = execute, .joins_lanes = true};
  };
  add("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32", &multiply_16_bit<8, gpu::from_half>);
  add("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", &multiply_16_bit<16, gpu::from_half>);
  add("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
      &multiply_16_bit<16, gpu::from_bfloat16>);
  add("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", &multiply_tf32);
  add("ldmatrix.sync.aligned.x4.m8n8.shared.b16", &load_matrices<false>);
  add("ldmatrix.sync.aligned.x4.trans.m8n8.shared.b16", &load_matrices<true>);
  add("shfl.sync.bfly.b32", &shuffle_by_xor);
  add("shfl.sync.idx.b32", &shuffle_by_index);
  add("vote.sync.any.pred", &vote_any);
}

}  // namespace attn::ptx
