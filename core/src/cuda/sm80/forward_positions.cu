// The forward's kernels that know positions.
#include "cuda/sm80/forward_launch.cuh"

namespace attn::cuda::sm80 {

template void launch_forward_by_position<64>(const ForwardArguments&, void*);
template void launch_forward_by_position<256>(const ForwardArguments&, void*);

}  // namespace attn::cuda::sm80
