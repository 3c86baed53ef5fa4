// Runs the core's parallel loops on torch's own threads.
#pragma once

#include "attn/runtime.h"

namespace attn_torch {

// Obeys torch.set_num_threads, and starts no second pool beside torch's.
attn_exec torch_executor();

}  // namespace attn_torch
