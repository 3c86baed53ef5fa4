// core/src/cuda/device/platform.cuh for the emulated GPU.
#pragma once

#include <cmath>
#include <cstdint>

#include "machine.h"

#define ATTN_DEVICE inline
#define ATTN_KERNEL
#define ATTN_LAUNCH_BOUNDS(threads, blocks)
#define ATTN_ARGUMENTS

namespace attn::cuda {

constexpr int kCompiledCapability = 80;

struct BlockIndex {
  int x, y, z;
};

inline int thread_index() { return emulation::thread_index(); }

inline BlockIndex block_index() {
  const emulation::Index index = emulation::block_index();
  return {index.x, index.y, index.z};
}

inline void synchronise_block(emulation::Place place = emulation::Place::current()) {
  emulation::join_block(place);
}

inline void synchronise_warp(emulation::Place place = emulation::Place::current()) {
  emulation::join_warp("synchronise_warp", nullptr, nullptr, place);
}

inline char* shared_memory() { return emulation::shared_memory(); }

inline int opaque(int x) { return x; }
template <class T>
const T& opaque(const T& x) {
  return x;
}

}  // namespace attn::cuda
