// Chooses among the forward's kernels of one bucket of widths.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/sm80/forward_kernel.cuh"
#include "cuda/sm80/forward_launch.h"

namespace attn::cuda::sm80 {

template <class Tiles>
void launch_forward_tiles(const ForwardArguments& arguments, void* stream) {
  const Grid grid{.x = QuerySlots<Tiles::kRows>::blocks(arguments.problem)};
  launch(forward_kernel<Tiles>, grid, Tiles::kThreads, Tiles::kSharedBytes, stream, arguments);
}

template <class Element, int kWidth>
void launch_forward_of(const ForwardArguments& arguments, bool is_extended, void* stream) {
  if (is_extended) {
    launch_forward_tiles<ForwardTiles<Element, kWidth, true>>(arguments, stream);
  } else {
    launch_forward_tiles<ForwardTiles<Element, kWidth, false>>(arguments, stream);
  }
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
  switch (arguments.problem.query.dtype) {
    case DType::kBFloat16:
      return launch_forward_tiles<ForwardTiles<BFloat16, kWidth, true, true>>(arguments, stream);
    case DType::kFloat16:
      return launch_forward_tiles<ForwardTiles<Half, kWidth, true, true>>(arguments, stream);
    default:
      return launch_forward_tiles<ForwardTiles<float, kWidth, true, true>>(arguments, stream);
  }
}

}  // namespace attn::cuda::sm80
