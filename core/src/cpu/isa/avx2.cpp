// The kernels for AVX2 + FMA + F16C.
#include "cpu/kernels/table-inl.h"
#include "cpu/simd/vec_avx2.h"

namespace attn::cpu {
namespace {

const KernelTable kSingleKernels = make_kernel_table<SingleOperand<VecAvx2>>();
const KernelTable kDoubleKernels = make_kernel_table<DoubleOperand<VecAvx2>>();

}  // namespace

const InstructionSet kAvx2 = {.name = "avx2",
                              .float32 = &kSingleKernels,
                              .float16 = &kSingleKernels,
                              .bfloat16 = &kSingleKernels,
                              .float64 = &kDoubleKernels};

}  // namespace attn::cpu
