// dQ, dK and dV for rows of up to 128 elements.
#include "cuda/sm80/backward_instances.h"
#include "cuda/sm80/backward_launch.cuh"

namespace attn::cuda::sm80 {

void launch_gradients_128(const BackwardArguments& arguments, void* stream) {
  launch_gradients<128>(arguments, stream);
}

}  // namespace attn::cuda::sm80
