// Where and with what a call runs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attn/runtime.h"
#include "attn/tensor.h"

namespace attn {

struct Resources {
  int32_t device_type = ATTN_DEVICE_CPU;
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
  attn_exec exec = ATTN_EXEC_INIT;
};

// Throws Refusal. `exec` may be NULL.
Resources read_resources(int32_t device_type, const attn_exec* exec, void* workspace = nullptr,
                         size_t workspace_bytes = 0);

}  // namespace attn
