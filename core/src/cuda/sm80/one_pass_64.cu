// dQ, dK, dV and dBias in one pass for rows of up to 64 elements.
#include "cuda/sm80/one_pass_launch.cuh"

namespace attn::cuda::sm80 {

void launch_one_pass_64(const OnePassArguments& arguments, void* stream) {
  launch_one_pass_of_width<64>(arguments, stream);
}

void launch_one_pass_bias_64(const BackwardArguments& arguments, void* stream) {
  launch_one_pass_bias_of_width<64>(arguments, stream);
}

}  // namespace attn::cuda::sm80
