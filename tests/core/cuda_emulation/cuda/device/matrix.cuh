// core/src/cuda/device/matrix.cuh for the emulated GPU; fragments as written there.
#pragma once

#include <cstring>

#include "cuda/device/element.cuh"
#include "gpu_arithmetic.h"

namespace attn::cuda {
namespace emulation {

struct LoadedMatrices {
  uint16_t row[8];  // that this lane names
  uint32_t* r;
};

template <bool transposed>
void perform_load(void* const (&operands)[kLanes]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto element = [&](int row, int column) {
        return static_cast<const LoadedMatrices*>(operands[8 * matrix + row])->row[column];
      };
      const uint32_t low = transposed ? element(2 * t, g) : element(g, 2 * t);
      const uint32_t high = transposed ? element(2 * t + 1, g) : element(g, 2 * t + 1);
      static_cast<LoadedMatrices*>(operands[lane])->r[matrix] = low | high << 16;
    }
  }
}

// A lane reads its row when it comes: what other lanes write later without a barrier is too late.
template <bool transposed>
void load(uint32_t (&r)[4], const void* shared_row, Place place) {
  require_shared("load_matrices", shared_row, 16, 16, place);
  LoadedMatrices mine{.row = {}, .r = r};
  std::memcpy(mine.row, shared_row, sizeof(mine.row));
  join_warp("load_matrices", &mine, &perform_load<transposed>, place);
}

// One lane's part in D += A B with K columns in A.
struct Product {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

template <int K>
struct Matrices {
  float a[16][K], b[K][8];
};

template <class Element>
Matrices<16> gather_16_bit(void* const (&operands)[kLanes]) {
  Matrices<16> all;
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& mine = *static_cast<const Product*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    const auto half = [](uint32_t pair, int i) {
      return to_float(Element{static_cast<uint16_t>(pair >> 16 * i)});
    };
    for (int i = 0; i < 2; ++i) {
      all.a[g][2 * t + i] = half(mine.a[0], i);
      all.a[g + 8][2 * t + i] = half(mine.a[1], i);
      all.a[g][2 * t + 8 + i] = half(mine.a[2], i);
      all.a[g + 8][2 * t + 8 + i] = half(mine.a[3], i);
      all.b[2 * t + i][g] = half(mine.b[0], i);
      all.b[2 * t + 8 + i][g] = half(mine.b[1], i);
    }
  }
  return all;
}

inline Matrices<8> gather_tf32(void* const (&operands)[kLanes]) {
  Matrices<8> all;
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& mine = *static_cast<const Product*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    all.a[g][t] = gpu::from_tf32(mine.a[0]);
    all.a[g + 8][t] = gpu::from_tf32(mine.a[1]);
    all.a[g][t + 4] = gpu::from_tf32(mine.a[2]);
    all.a[g + 8][t + 4] = gpu::from_tf32(mine.a[3]);
    all.b[t][g] = gpu::from_tf32(mine.b[0]);
    all.b[t + 4][g] = gpu::from_tf32(mine.b[1]);
  }
  return all;
}

template <int K>
void multiply(const Matrices<K>& all, void* const (&operands)[kLanes]) {
  float d[16][8];
  const auto each = [&](const auto& body) {
    for (int lane = 0; lane < kLanes; ++lane) {
      float* const mine = static_cast<const Product*>(operands[lane])->d;
      for (int i = 0; i < 4; ++i) body(mine[i], d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
    }
  };
  each([](float& of_lane, float& all_of_d) { all_of_d = of_lane; });
  gpu::multiply_accumulate(all.a, all.b, d);
  each([](float& of_lane, float& all_of_d) { of_lane = all_of_d; });
}

}  // namespace emulation

inline void load_matrices(uint32_t (&r)[4], const void* shared_row,
                          emulation::Place place = emulation::Place::current()) {
  emulation::load<false>(r, shared_row, place);
}

inline void load_matrices_transposed(uint32_t (&r)[4], const void* shared_row,
                                     emulation::Place place = emulation::Place::current()) {
  emulation::load<true>(r, shared_row, place);
}

template <class Element>
void multiply_accumulate(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         emulation::Place place = emulation::Place::current()) {
  const auto perform = [](void* const(&operands)[emulation::kLanes]) {
    emulation::multiply(emulation::gather_16_bit<Element>(operands), operands);
  };
  emulation::Product mine{.d = d, .a = a, .b = b};
  emulation::join_warp("multiply_accumulate", &mine, perform, place);
}

inline void multiply_accumulate_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                     emulation::Place place = emulation::Place::current()) {
  const auto perform = [](void* const(&operands)[emulation::kLanes]) {
    emulation::multiply(emulation::gather_tf32(operands), operands);
  };
  emulation::Product mine{.d = d, .a = a, .b = b};
  emulation::join_warp("multiply_accumulate_tf32", &mine, perform, place);
}

}  // namespace attn::cuda
