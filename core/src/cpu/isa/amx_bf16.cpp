// The kernels for AMX with its bfloat16 products; float64 has those of AVX-512.
#include "cpu/kernels/table-inl.h"
#include "cpu/simd/bfloat16_tiles_amx.h"
#include "cpu/simd/split_tiles_amx.h"

namespace attn::cpu {
namespace {

const KernelTable kTileKernels = make_kernel_table<BFloat16Tiles>();
const KernelTable kTwoPieceKernels = make_kernel_table<SplitTiles<2>>();
const KernelTable kThreePieceKernels = make_kernel_table<SplitTiles<3>>();

}  // namespace

const InstructionSet kAmxBf16 = {.name = "amx_bf16",
                                 .float32 = &kThreePieceKernels,
                                 .float16 = &kTwoPieceKernels,
                                 .bfloat16 = &kTileKernels,
                                 .float64 = &kAvx512DoubleKernels};

}  // namespace attn::cpu
