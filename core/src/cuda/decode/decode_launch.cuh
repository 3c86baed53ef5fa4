// Queues the kernel of decoding for one width of tiles.
#pragma once

#include "cuda/decode/decode_kernel.cuh"
#include "cuda/decode/decode_launch.h"
#include "cuda/launch.cuh"

namespace attn::cuda::decode {

template <class Element, int kWidth>
void launch_one(const DecodeArguments& a, void* stream) {
  launch(&decode_kernel<Element, kWidth>, {.x = a.splits * a.problem.Hkv * a.problem.num_sequences},
         DecodeShape<Element, kWidth>::kThreads, DecodeSplit<Element, kWidth>::kBytes, stream, a);
}

template <int kWidth>
void launch_decode(const DecodeArguments& a, void* stream) {
  switch (a.problem.query.dtype) {
    case DType::kFloat16: return launch_one<Half, kWidth>(a, stream);
    case DType::kBFloat16: return launch_one<BFloat16, kWidth>(a, stream);
    default: return launch_one<float, kWidth>(a, stream);
  }
}

}  // namespace attn::cuda::decode
