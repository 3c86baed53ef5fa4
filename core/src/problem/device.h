// The device that all tensors of a call are on.
#pragma once

#include <cstdint>

#include "attn/tensor.h"

namespace attn {

struct Device {
  int32_t type = ATTN_DEVICE_CPU;
  int32_t id = 0;

  bool is_cuda() const { return type == ATTN_DEVICE_CUDA; }
};

}  // namespace attn
