// The candidates of a build for an architecture without kernels of its own.
#include "dispatch/cpu_choice.h"

namespace attn {
namespace {

bool always() { return true; }

constexpr CpuCandidate kCandidates[] = {{.isa = &cpu::kScalar, .runs_here = always}};

}  // namespace

std::span<const CpuCandidate> cpu_candidates() { return kCandidates; }

}  // namespace attn
