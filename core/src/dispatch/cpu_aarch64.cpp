// The candidates of an AArch64 build, where NEON is part of the base architecture.
#include "dispatch/cpu_choice.h"

namespace attn {
namespace {

bool always() { return true; }

constexpr CpuCandidate kCandidates[] = {
    {.isa = &cpu::kNeon, .runs_here = always},
    {.isa = &cpu::kScalar, .runs_here = always},
};

}  // namespace

std::span<const CpuCandidate> cpu_candidates() { return kCandidates; }

}  // namespace attn
