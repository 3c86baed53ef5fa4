// The kernels for AVX-512 F, BW, DQ and VL.
#include "cpu/kernels/table-inl.h"
#include "cpu/simd/vec_avx512.h"

namespace attn::cpu {

const KernelTable kAvx512SingleKernels = make_kernel_table<SingleOperand<VecAvx512>>();
const KernelTable kAvx512DoubleKernels = make_kernel_table<DoubleOperand<VecAvx512>>();

const InstructionSet kAvx512 = {.name = "avx512",
                                .float32 = &kAvx512SingleKernels,
                                .float16 = &kAvx512SingleKernels,
                                .bfloat16 = &kAvx512SingleKernels,
                                .float64 = &kAvx512DoubleKernels};

}  // namespace attn::cpu
