// The kernels of the backward, by the source file that holds them.
#pragma once

#include "cuda/sm80/backward_arguments.h"

namespace attn::cuda::sm80 {

// lse and delta of every query row.
void launch_row_statistics(const BackwardArguments& arguments, void* stream);

// dQ, dK and dV, where they are wanted, for rows of up to so many elements.
void launch_gradients_64(const BackwardArguments& arguments, void* stream);
void launch_gradients_128(const BackwardArguments& arguments, void* stream);
void launch_gradients_256(const BackwardArguments& arguments, void* stream);

// The same of a call with positions, for rows of any dtype.
void launch_gradients_by_position_64(const BackwardArguments& arguments, void* stream);
void launch_gradients_by_position_256(const BackwardArguments& arguments, void* stream);

// Those of positions' features and tables, where they are wanted; features that are the query or
// the key add to dQ or dK. `sums` is workspace for the wider of the tables that have a gradient:
// [Hq, distances_of(problem), width].
void launch_position_gradients(const BackwardArguments& arguments, float* sums, void* stream);

// dBias, where launch_gradients does not store it in its pass; and zeros all over it.
void launch_bias_gradient(const BackwardArguments& arguments, void* stream);
void launch_clear_bias(const BackwardArguments& arguments, void* stream);

// dSlopes and dTable, where they are wanted. `sums` has so many bytes of workspace.
int64_t distance_sums_bytes(const BackwardProblem& problem);
void launch_distance_gradients(const BackwardArguments& arguments, double* sums, void* stream);

void launch_sink_gradient(const BackwardArguments& arguments, void* stream);

}  // namespace attn::cuda::sm80
