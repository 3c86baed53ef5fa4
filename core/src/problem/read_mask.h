// Resolves an attn_mask against the shapes of one call.
#pragma once

#include "attn/mask.h"
#include "problem/problem.h"
#include "problem/tensor_reader.h"

namespace attn {

// Fills problem's band, bias and dropout; its extents must be set. `given` may be NULL.
// Returns the caller's bias tensor, or NULL.
const attn_tensor* read_mask(const attn_mask* given, TensorReader& reader, Problem& problem);

}  // namespace attn
