// core/src/cuda/device/shuffle.cuh for the emulated GPU.
#pragma once

#include "cuda/device/platform.cuh"

namespace attn::cuda {
namespace emulation {

template <class T>
struct Shuffled {
  T value;
  int source;
  T result;
};

template <class T>
void perform_shuffle(void* const (&operands)[kLanes]) {
  for (void* lane : operands) {
    auto& mine = *static_cast<Shuffled<T>*>(lane);
    mine.result = static_cast<const Shuffled<T>*>(operands[mine.source])->value;
  }
}

}  // namespace emulation

template <class T>
T shuffle(T value, int source, emulation::Place place = emulation::Place::current()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  // As the hardware does, which takes the lane modulo 32.
  emulation::Shuffled<T> mine{
      .value = value, .source = source & (emulation::kLanes - 1), .result = value};
  emulation::join_warp("shuffle", &mine, &emulation::perform_shuffle<T>, place);
  return mine.result;
}

template <class T>
T shuffle_xor(T value, int mask, emulation::Place place = emulation::Place::current()) {
  return shuffle(value, (thread_index() % emulation::kLanes) ^ mask, place);
}

inline bool any(bool condition, emulation::Place place = emulation::Place::current()) {
  const auto perform = [](void* const(&operands)[emulation::kLanes]) {
    bool result = false;
    for (void* lane : operands) result |= *static_cast<const bool*>(lane);
    for (void* lane : operands) *static_cast<bool*>(lane) = result;
  };
  emulation::join_warp("any", &condition, perform, place);
  return condition;
}

}  // namespace attn::cuda
