// The candidates of an x86-64 build. __builtin_cpu_supports also asks whether the operating system
// saves the wide registers.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

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

// Sapphire Rapids multiplies half as many numbers in a cycle by vdpbf16ps as by float32's fused
// instructions: to convert the operands first takes two thirds of the time.
bool is_not_intel() { return !__builtin_cpu_is("intel"); }

// Linux saves the tile registers of a process that has asked for them, and lets no other use them.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_amx_bf16() {
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // of leaf 7's EDX
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return has_avx512_bf16() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kAmxBf16) &&
         (edx & kAmxTile) && may_use_tiles();
}

bool always() { return true; }

constexpr CpuCandidate kCandidates[] = {
    {.isa = &cpu::kAmxBf16, .runs_here = has_amx_bf16},
    {.isa = &cpu::kAvx512Bf16, .runs_here = has_avx512_bf16, .repays_here = is_not_intel},
    {.isa = &cpu::kAvx512, .runs_here = has_avx512},
    {.isa = &cpu::kAvx2, .runs_here = has_avx2},
    {.isa = &cpu::kScalar, .runs_here = always},
};

}  // namespace

std::span<const CpuCandidate> cpu_candidates() { return kCandidates; }

}  // namespace attn
