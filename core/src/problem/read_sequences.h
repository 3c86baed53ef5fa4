// Resolves the parts of an attn_mask that are lists of integers: sequences, pages and blocks.
#pragma once

#include "attn/mask.h"
#include "problem/problem.h"
#include "problem/tensor_reader.h"

namespace attn {

// Fills problem's sequences and pages, and its bounds of what a sequence has; its extents must be
// set. Refuses numbers that point outside the tensors of the call.
void read_sequences(const attn_sequences& sequences, const attn_pages& pages, TensorReader& reader,
                    Problem& problem);

// Fills problem's blocks, likewise; after the sequences.
void read_blocks(const attn_blocks& blocks, TensorReader& reader, Problem& problem);

}  // namespace attn
