// The kernels for AVX-512 with its bfloat16 dot product.
#include "cpu/kernels/table-inl.h"
#include "cpu/simd/bfloat16_pairs_avx512.h"

namespace attn::cpu {

const KernelTable kAvx512Bf16Kernels = make_kernel_table<VecAvx512, BFloat16Pairs>("avx512_bf16");

}  // namespace attn::cpu
