// dQ, dK and dV of calls with positions.
#include "cuda/sm80/backward_instances.h"
#include "cuda/sm80/backward_launch.cuh"

namespace attn::cuda::sm80 {

void launch_gradients_by_position_64(const BackwardArguments& arguments, void* stream) {
  launch_gradients_by_position<64>(arguments, stream);
}

void launch_gradients_by_position_256(const BackwardArguments& arguments, void* stream) {
  launch_gradients_by_position<256>(arguments, stream);
}

}  // namespace attn::cuda::sm80
