// The candidates of an x86-64 build. __builtin_cpu_supports also asks whether the operating system
// saves the wide registers.
#include "dispatch/cpu_choice.h"

namespace attn {
namespace {

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

bool always() { return true; }

constexpr CpuCandidate kCandidates[] = {
    {.isa = &cpu::kAvx512Bf16, .runs_here = has_avx512_bf16},
    {.isa = &cpu::kAvx512, .runs_here = has_avx512},
    {.isa = &cpu::kAvx2, .runs_here = has_avx2},
    {.isa = &cpu::kScalar, .runs_here = always},
};

}  // namespace

std::span<const CpuCandidate> cpu_candidates() { return kCandidates; }

}  // namespace attn
