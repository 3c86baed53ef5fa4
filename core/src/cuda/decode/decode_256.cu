// Decoding with rows of up to 256 elements.
#include "cuda/decode/decode_launch.cuh"

namespace attn::cuda::decode {

void launch_decode_256(const DecodeArguments& arguments, void* stream) {
  launch_decode<256>(arguments, stream);
}

}  // namespace attn::cuda::decode
