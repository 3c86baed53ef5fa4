// Resolves an attn_mask against the shapes of one call.
#pragma once

#include "attn/mask.h"
#include "problem/problem.h"
#include "problem/tensor_reader.h"

namespace attn {

// Fills what problem knows of the mask; its extents must be set. `given` may be NULL.
// Returns the mask as the caller gave it, with defaults for what was not given.
attn_mask read_mask(const attn_mask* given, TensorReader& reader, Problem& problem);

// Reads a bias that adds to the scores of problem's queries with `keys`, or none (NULL).
Scores read_bias(const attn_tensor* bias, Axis keys, TensorReader& reader, const Problem& problem);

}  // namespace attn
