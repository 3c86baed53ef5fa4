// The kernels for any machine: portable C++.
#include "cpu/kernels/table-inl.h"
#include "cpu/simd/vec_array.h"

namespace attn::cpu {
namespace {

using VecScalar = VecArray<float, 4>;

const KernelTable kSingleKernels = make_kernel_table<SingleOperand<VecScalar>>();
const KernelTable kDoubleKernels = make_kernel_table<DoubleOperand<VecScalar>>();

}  // namespace

const InstructionSet kScalar = {.name = "scalar",
                                .float32 = &kSingleKernels,
                                .float16 = &kSingleKernels,
                                .bfloat16 = &kSingleKernels,
                                .float64 = &kDoubleKernels};

}  // namespace attn::cpu
