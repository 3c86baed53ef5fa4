// Decoding with rows of up to 128 elements.
#include "cuda/decode/decode_launch.cuh"

namespace attn::cuda::decode {

void launch_decode_128(const DecodeArguments& arguments, void* stream) {
  launch_decode<128>(arguments, stream);
}

}  // namespace attn::cuda::decode
