// The kernels for AVX2 + FMA + F16C.
#include "cpu/kernels/table-inl.h"
#include "cpu/simd/vec_avx2.h"

namespace attn::cpu {

const KernelTable kAvx2Kernels = make_kernel_table<VecAvx2, SingleOperand<VecAvx2>>("avx2");

}  // namespace attn::cpu
