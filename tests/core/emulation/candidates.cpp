// The candidates of a test program that contains the emulated AVX-512 and AMX kernels.
#include "dispatch/cpu_choice.h"

namespace attn {
namespace {

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

constexpr CpuCandidate kCandidates[] = {
    {.isa = &cpu::kAmxBf16, .runs_here = has_avx2},
    {.isa = &cpu::kAvx512Bf16, .runs_here = has_avx2},
    {.isa = &cpu::kAvx512, .runs_here = has_avx2},
};

}  // namespace

std::span<const CpuCandidate> cpu_candidates() { return kCandidates; }

}  // namespace attn
