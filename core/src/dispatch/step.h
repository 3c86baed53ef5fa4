// Takes a validated step on the device its tensors are on.
#pragma once

#include <cstddef>

#include "problem/read_step.h"

namespace attn {

// Both throw Refusal: before anything is written, unless it is the device that failed.
size_t step_workspace(const StepCall& call);  // bytes
void step(const StepCall& call);

}  // namespace attn
