// Runs kernels in PTX on a machine without a GPU.
#pragma once

#include "block.h"

namespace attn::ptx {

// Runs all blocks. A few run at a time, in an order that changes from launch to launch;
// ATTN_EMULATION_SEED chooses the first.
void run_grid(const Launch& launch);

}  // namespace attn::ptx
