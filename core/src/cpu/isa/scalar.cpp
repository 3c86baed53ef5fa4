// The kernels for any machine: portable C++.
#include "cpu/kernels/table-inl.h"
#include "cpu/simd/vec_array.h"

namespace attn::cpu {

using VecScalar = VecArray<float, 4>;

const KernelTable kScalarKernels = make_kernel_table<VecScalar, SingleOperand<VecScalar>>("scalar");

}  // namespace attn::cpu
