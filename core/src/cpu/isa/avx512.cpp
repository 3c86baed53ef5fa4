// The kernels for AVX-512 F, BW, DQ and VL.
#include "cpu/kernels/table-inl.h"
#include "cpu/simd/vec_avx512.h"

namespace attn::cpu {

const KernelTable kAvx512Kernels = make_kernel_table<VecAvx512, SingleOperand<VecAvx512>>("avx512");

}  // namespace attn::cpu
