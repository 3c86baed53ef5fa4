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

}  // namespace attn::cuda::sm80
