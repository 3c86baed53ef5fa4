// What launches the forward's kernels, one file of them for each bucket of widths.
#pragma once

#include "problem/problem.h"

namespace attn::cuda::sm80 {

struct ForwardArguments {
  ForwardProblem problem;
  // Whether rows can be copied in chunks of 16 bytes.
  bool query_is_aligned, key_is_aligned, value_is_aligned;
  float scale, softcap;  // to base 2; softcap 0: none
  // Of the plain kernels: what a score is multiplied with before its bias, and after.
  float natural_scale, score_factor;
  bool keeps_rests;  // of probabilities, in the extended kernels
};

// Of K and Kv at most kWidth. `is_extended`: beyond aligned rows, a band, and either sequences or a
// tensor of biases in aligned rows.
template <int kWidth>
void launch_forward(const ForwardArguments& arguments, bool is_extended, void* stream);

// Of any mask and dtype, with positions.
template <int kWidth>
void launch_forward_by_position(const ForwardArguments& arguments, void* stream);

}  // namespace attn::cuda::sm80
