// Chooses among the forward's kernels of one bucket of widths.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/sm80/forward_kernel.cuh"
#include "cuda/sm80/forward_launch.h"

namespace attn::cuda::sm80 {

template <class Tiles>
void launch_forward_tiles(const ForwardArguments& arguments, void* stream) {
  const Grid grid{.x = QuerySlots<Tiles::kRows>::blocks(arguments.problem)};
  const int shared = Tiles::kSharedBytes + (arguments.problem.bias ? Tiles::kRawBiasBytes : 0);
  launch(forward_kernel<Tiles>, grid, Tiles::kThreads, shared, stream, arguments);
}

template <class Element, int kWidth, bool is_extended>
void launch_forward_variant(const ForwardArguments& arguments, void* stream) {
  if constexpr (has_width(sizeof(Element), kWidth, is_extended)) {
    launch_forward_tiles<ForwardTiles<Element, kWidth, is_extended>>(arguments, stream);
  }
}

template <class Element, int kWidth>
void launch_forward_of(const ForwardArguments& arguments, bool is_extended, void* stream) {
  if (is_extended) return launch_forward_variant<Element, kWidth, true>(arguments, stream);
  launch_forward_variant<Element, kWidth, false>(arguments, stream);
}

template <int kWidth>
void launch_forward(const ForwardArguments& arguments, bool is_extended, void* stream) {
  switch (arguments.problem.query.dtype) {
    case DType::kBFloat16:
      return launch_forward_of<BFloat16, kWidth>(arguments, is_extended, stream);
    case DType::kFloat16: return launch_forward_of<Half, kWidth>(arguments, is_extended, stream);
    default: return launch_forward_of<float, kWidth>(arguments, is_extended, stream);
  }
}

template <int kWidth>
void launch_forward_by_position(const ForwardArguments& arguments, void* stream) {
  launch_forward_tiles<ForwardTiles<float, kWidth, true, true>>(arguments, stream);
}

}  // namespace attn::cuda::sm80
