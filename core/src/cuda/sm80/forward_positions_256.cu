// The forward's kernels that know positions, for K and Kv of at most 256.
#include "cuda/sm80/forward_launch.cuh"

template void attn::cuda::sm80::launch_forward_by_position<256>(const ForwardArguments&, void*);
