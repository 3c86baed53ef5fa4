// Ring buffers of keys, values and waiting queries: appending a step, which query attends, and
// which slots it sees.
#pragma once

#include <cstddef>

#include "problem/step_problem.h"

namespace attn::cpu {

// Before append, where queries wait: copies those that have waited to where they attend from, and
// lets this step's, of active streams, wait in their slots.
void exchange(const HeadRows& attending_query, const StepProblem& problem);

// Writes the rows of every active stream into their slots, and advances its position.
void append(const StepProblem& problem);

// After append: whether all slots of all streams are seen, and nothing is added to their scores.
bool sees_every_slot(const StepProblem& problem);

// What is added to the score of each slot, where the slots are not simply seen.
size_t slot_bias_bytes(const StepProblem& problem);
// After append: writes it, -infinity or false where a slot is not seen, into memory of so many
// bytes at a multiple of 8.
void fill(const Scores& slot_bias, const StepProblem& problem);

}  // namespace attn::cpu
