// dQ, dK, dV and dBias in one pass for rows of up to 128 elements.
#include "cuda/sm80/one_pass_launch.cuh"

namespace attn::cuda::sm80 {

void launch_one_pass_128(const OnePassArguments& arguments, void* stream) {
  launch_one_pass_of_width<128>(arguments, stream);
}

void launch_one_pass_bias_128(const BackwardArguments& arguments, void* stream) {
  launch_one_pass_bias_of_width<128>(arguments, stream);
}

}  // namespace attn::cuda::sm80
