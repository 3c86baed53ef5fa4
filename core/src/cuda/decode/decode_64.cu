// Decoding with rows of up to 64 elements.
#include "cuda/decode/decode_launch.cuh"

namespace attn::cuda::decode {

void launch_decode_64(const DecodeArguments& arguments, void* stream) {
  launch_decode<64>(arguments, stream);
}

}  // namespace attn::cuda::decode
