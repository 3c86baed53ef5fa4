// Where and with what a call runs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attn/runtime.h"
#include "problem/device.h"
#include "problem/tensor_reader.h"

namespace attn {

struct Resources {
  Device device;
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
  attn_exec exec = ATTN_EXEC_INIT;
};

// Those of a call whose tensors `reader` has read. Throws Refusal. `exec` may be NULL.
Resources read_resources(const TensorReader& reader, const attn_exec* exec,
                         void* workspace = nullptr, size_t workspace_bytes = 0);

}  // namespace attn
