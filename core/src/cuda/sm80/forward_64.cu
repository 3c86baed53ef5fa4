// The forward's kernels for K and Kv of at most 64.
#include "cuda/sm80/forward_launch.cuh"

template void attn::cuda::sm80::launch_forward<64>(const ForwardArguments&, bool, void*);
