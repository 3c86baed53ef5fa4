// The kernels for AMX with its bfloat16 products; other dtypes have those of AVX-512.
#include "cpu/kernels/table-inl.h"
#include "cpu/simd/bfloat16_tiles_amx.h"

namespace attn::cpu {
namespace {

const KernelTable kTileKernels = make_kernel_table<BFloat16Tiles>();

}  // namespace

const InstructionSet kAmxBf16 = {.name = "amx_bf16",
                                 .float32 = &kAvx512SingleKernels,
                                 .float16 = &kAvx512SingleKernels,
                                 .bfloat16 = &kTileKernels,
                                 .float64 = &kAvx512DoubleKernels};

}  // namespace attn::cpu
