// The kernels for AArch64 and its Advanced SIMD.
#include "cpu/kernels/table-inl.h"
#include "cpu/simd/vec_neon.h"

namespace attn::cpu {

const KernelTable kNeonKernels = make_kernel_table<VecNeon, SingleOperand<VecNeon>>("neon");

}  // namespace attn::cpu
