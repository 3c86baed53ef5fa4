// The kernels for AArch64 and its Advanced SIMD.
#include "cpu/kernels/table-inl.h"
#include "cpu/simd/vec_neon.h"

namespace attn::cpu {
namespace {

const KernelTable kSingleKernels = make_kernel_table<SingleOperand<VecNeon>>();
const KernelTable kDoubleKernels = make_kernel_table<DoubleOperand<VecNeon>>();

}  // namespace

const InstructionSet kNeon = {.name = "neon",
                              .float32 = &kSingleKernels,
                              .float16 = &kSingleKernels,
                              .bfloat16 = &kSingleKernels,
                              .float64 = &kDoubleKernels};

}  // namespace attn::cpu
