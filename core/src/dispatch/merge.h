// Runs a validated merge on the device its tensors are on.
#pragma once

#include "problem/read_merge.h"

namespace attn {

// Both throw Refusal: before anything is written, unless it is the device that failed.
void merge_forward(const MergeForwardCall& call);
void merge_backward(const MergeBackwardCall& call);

}  // namespace attn
