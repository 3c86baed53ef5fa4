// Reads the mask's positions, and where their gradients go.
#pragma once

#include "attn/attention.h"
#include "problem/problem.h"
#include "problem/tensor_reader.h"

namespace attn {

// Of a problem whose operands and sequences are read. Throws Refusal.
Positions read_positions(const attn_positions& given, TensorReader& reader, const Problem& problem);

// Reads the gradients of positions that are wanted, into the problem. Throws Refusal.
void read_grad_positions(const attn_attention_backward_args& args, const attn_positions& positions,
                         TensorReader& reader, BackwardProblem& problem);

}  // namespace attn
