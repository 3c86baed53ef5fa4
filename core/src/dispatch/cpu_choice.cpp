// Picks the best candidate that runs here, or the one that ATTN_CPU_ISA names.
#include "dispatch/cpu_choice.h"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "dispatch/capabilities.h"
#include "problem/refusal.h"

namespace attn {
namespace {

constexpr const char* kKnownIsas[] = {"scalar",      "avx2",     "avx512",
                                      "avx512_bf16", "amx_bf16", "neon"};

// In memory of its own: asking is promised to succeed, so that nothing may be allocated.
struct IsaNames {
  char text[64] = "";

  IsaNames() {
    size_t used = 0;
    for (const CpuCandidate& candidate : cpu_candidates()) {
      if (!candidate.runs_here()) continue;
      const char* separator = used == 0 ? "" : " ";
      used +=
          std::snprintf(text + used, sizeof(text) - used, "%s%s", separator, candidate.isa->name);
    }
  }
};

struct Choice {
  const cpu::InstructionSet* isa = nullptr;  // NULL: refused
  std::string asked_for;                     // ATTN_CPU_ISA
  bool is_known = true;
};

Choice choose() {
  const char* asked_for = std::getenv("ATTN_CPU_ISA");
  const bool is_forced = asked_for && *asked_for;
  Choice choice{.asked_for = is_forced ? asked_for : ""};
  for (const CpuCandidate& candidate : cpu_candidates()) {
    const bool repays = !candidate.repays_here || candidate.repays_here();
    const bool is_wanted = is_forced ? choice.asked_for == candidate.isa->name : repays;
    if (!is_wanted || !candidate.runs_here()) continue;
    choice.isa = candidate.isa;
    return choice;
  }
  choice.is_known = false;
  for (std::string_view isa : kKnownIsas) choice.is_known |= choice.asked_for == isa;
  return choice;
}

const cpu::InstructionSet& chosen() {
  static const Choice choice = choose();
  if (choice.isa) return *choice.isa;
  const char* asked_for = choice.asked_for.c_str();
  if (choice.is_known) {
    refuse_unsupported(
        "expected the environment's ATTN_CPU_ISA to be one that runs here (%s), got "
        "%s; change or unset it",
        cpu_isas(), asked_for);
  }
  refuse_argument(
      "expected the environment's ATTN_CPU_ISA to name CPU kernels (here: %s), got "
      "%.64s; change or unset it",
      cpu_isas(), asked_for);
}

}  // namespace

const cpu::KernelTable& chosen_cpu_kernels(DType dtype) { return chosen().kernels_for(dtype); }

const char* cpu_isa() { return chosen().name; }

const char* cpu_isas() {
  static const IsaNames names;
  return names.text;
}

}  // namespace attn
