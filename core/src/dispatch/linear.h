// Runs a validated linear layer.
#pragma once

#include <cstddef>

#include "problem/read_linear.h"

namespace attn {

// Bytes that the call needs, whatever the alignment.
size_t linear_workspace(const LinearCall& call);

// Throws Refusal, before anything is written, if the workspace is too small.
void linear(const LinearCall& call);

}  // namespace attn
