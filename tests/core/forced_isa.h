// Programs that are run once for each instruction set, which ATTN_CPU_ISA then forces.
#pragma once

#include <cstdio>

#include "attn/attn.h"
#include "check.h"

// Whether this CPU runs it. If not, prints why; main then returns check::kSkipped.
inline bool runs_forced_isa() {
  const char* isa = nullptr;
  attn_error error{};
  const attn_status status = attn_cpu_isa(&isa, &error);
  if (status == ATTN_ERROR_UNSUPPORTED) {
    std::printf("skipped: %s\n", error.message);
    return false;
  }
  CHECK_IN(error.message, status == ATTN_OK);
  return true;
}
