// The forward's kernels for K and Kv of at most 128.
#include "cuda/sm80/forward_launch.cuh"

template void attn::cuda::sm80::launch_forward<128>(const ForwardArguments&, bool, void*);
