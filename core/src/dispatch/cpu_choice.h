// Which CPU kernels this process uses.
#pragma once

#include <span>

#include "cpu/kernel_table.h"

namespace attn {

struct CpuCandidate {
  const cpu::InstructionSet* isa;
  bool (*runs_here)();              // whether this CPU and its operating system do
  bool (*repays_here)() = nullptr;  // whether it is faster than the next there; null: yes
};

// What this build contains, most capable first; one file per architecture defines it.
std::span<const CpuCandidate> cpu_candidates();

// The kernels in use for problems of a dtype, chosen once. Throws Refusal if ATTN_CPU_ISA asks for
// the impossible.
const cpu::KernelTable& chosen_cpu_kernels(DType dtype);

}  // namespace attn
