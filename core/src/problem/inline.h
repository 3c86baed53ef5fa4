// ATTN_INLINE: a function that every kernel may call, on the CPU or on a GPU. Always inlined: an
// out-of-line copy compiled for one instruction set could otherwise be the one the linker keeps for
// every machine.
#pragma once

#ifdef __CUDACC__
#define ATTN_INLINE __host__ __device__ __forceinline__
#else
#define ATTN_INLINE [[gnu::always_inline]] inline
#endif
