// The kernels for AVX-512 with its bfloat16 dot product; other dtypes have those of AVX-512.
#include "cpu/kernels/table-inl.h"
#include "cpu/simd/bfloat16_pairs_avx512.h"

namespace attn::cpu {
namespace {

const KernelTable kPairKernels = make_kernel_table<BFloat16Pairs>();

}  // namespace

const InstructionSet kAvx512Bf16 = {.name = "avx512_bf16",
                                    .float32 = &kAvx512SingleKernels,
                                    .float16 = &kAvx512SingleKernels,
                                    .bfloat16 = &kPairKernels,
                                    .float64 = &kAvx512DoubleKernels};

}  // namespace attn::cpu
