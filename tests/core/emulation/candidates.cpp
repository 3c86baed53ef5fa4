// The candidates of a test program that contains the emulated AVX-512 kernels: all of them run.
#include "dispatch/cpu_choice.h"

namespace attn {
namespace {

bool always() { return true; }

constexpr CpuCandidate kCandidates[] = {
    {.kernels = &cpu::kAvx512Bf16Kernels, .runs_here = always},
    {.kernels = &cpu::kAvx512Kernels, .runs_here = always},
};

}  // namespace

std::span<const CpuCandidate> cpu_candidates() { return kCandidates; }

}  // namespace attn
