// core/src/cuda/device/copy.cuh for the emulated GPU.
#pragma once

#include "cuda/device/platform.cuh"

namespace attn::cuda {

template <int Bytes>
void copy_async(void* shared, const void* global, bool present,
                emulation::Place place = emulation::Place::current()) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  emulation::begin_copy(shared, global, Bytes, present, place);
}

inline void commit_copies() { emulation::commit_copies(); }

template <int N>
void wait_for_copies() {
  emulation::wait_for_copies(N);
}

}  // namespace attn::cuda
