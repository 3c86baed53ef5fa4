// Gradients that need of a query row its statistics alone: those of sinks, and of a bias that is
// the same for all keys.
#pragma once

#include "cuda/device/score_terms.cuh"
#include "cuda/device/sequences.cuh"
#include "cuda/sm80/backward_arguments.h"

namespace attn::cuda {

constexpr int kRowGradientThreads = 128;

// What a query row adds to its head's dSink: dS of a key whose value is 0.
ATTN_DEVICE float sink_gradient_of(const BackwardArguments& a, int64_t b, int64_t h, int64_t m) {
  const BackwardProblem& p = a.problem;
  const float lse = p.lse.at<float>(b, h, m);
  if (lse == -infinity()) return 0.0f;
  const float sink = kLog2E * read_number(p.sink.at(h), p.sink.dtype);
  const float probability =
      exp2_approximate(sink - p.lse_maximum.at<float>(b, h, m) - p.lse_rest.at<float>(b, h, m));
  return -probability * a.delta.at<float>(b, h, m);
}

// Shifting all scores of a row shifts its lse and no probability: its dS sum to its dLSE. A sink
// takes its part of that.
ATTN_DEVICE float row_shift_gradient_of(const BackwardArguments& a, int64_t b, int64_t h,
                                        int64_t m) {
  const BackwardProblem& p = a.problem;
  const float lse = p.lse.at<float>(b, h, m);
  if (lse == -infinity()) return 0.0f;
  float sum = 0.0f * lse;  // a row of NaN stays one
  if (p.grad_lse) sum += p.grad_lse.at<float>(b, h, m);
  if (p.sink) sum -= sink_gradient_of(a, b, h, m);
  return sum;
}

// Sums over the block's threads, in an order that does not change; the first one gets the result.
ATTN_DEVICE double block_sum(double mine) {
  double* const sums = reinterpret_cast<double*>(shared_memory());
  sums[thread_index()] = mine;
  synchronise_block();
  double total = 0.0;
  if (thread_index() == 0) {
    for (int i = 0; i < kRowGradientThreads; ++i) total += sums[i];
  }
  return total;
}

// A block of threads for each query head.
template <int kThreads>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kThreads, 1)
    sink_gradient_kernel(ATTN_ARGUMENTS const BackwardArguments a) {
  const BackwardProblem& p = a.problem;
  const int64_t h = block_index().x;
  double sum = 0.0;
  for (int64_t row = thread_index(); row < p.B * p.Mq; row += kThreads) {
    sum += static_cast<double>(sink_gradient_of(a, row / p.Mq, h, row % p.Mq));
  }
  const double total = block_sum(sum);
  if (thread_index() == 0) {
    write_number(p.grad_sink.at(h), p.grad_sink.dtype, static_cast<float>(total));
  }
}

// A block of threads for each element of a bias gradient that has one key.
template <int kThreads>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kThreads, 1)
    row_bias_gradient_kernel(ATTN_ARGUMENTS const BackwardArguments a) {
  const BackwardProblem& p = a.problem;
  const int64_t rows = p.grad_bias_sums_m ? 1 : p.Mq, heads = p.grad_bias_sums_h ? 1 : p.Hq;
  const int64_t m = block_index().x % rows, h = block_index().x / rows % heads;
  const int64_t b = block_index().x / rows / heads;
  const int64_t all_m = p.grad_bias_sums_m ? p.Mq : 1, all_h = p.grad_bias_sums_h ? p.Hq : 1;
  const int64_t all = all_m * all_h * (p.grad_bias_sums_b ? p.B : 1);
  double sum = 0.0;
  for (int64_t at = thread_index(); at < all; at += kThreads) {
    sum += static_cast<double>(
        row_shift_gradient_of(a, b + at / all_m / all_h, h + at / all_m % all_h, m + at % all_m));
  }
  const double total = block_sum(sum);
  if (thread_index() == 0) {
    write_number(p.grad_bias.row(b, h, m), p.grad_bias.dtype, static_cast<float>(total));
  }
}

// Writes zeros to all of the bias gradient: a thread for each element.
template <int kThreads>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kThreads, 1)
    clear_bias_gradient_kernel(ATTN_ARGUMENTS const BackwardArguments a) {
  const BackwardProblem& p = a.problem;
  const int64_t at = int64_t{block_index().x} * kThreads + thread_index();
  const int64_t n = at % p.Mkv, m = at / p.Mkv % p.Mq, h = at / p.Mkv / p.Mq % p.Hq;
  const int64_t b = at / p.Mkv / p.Mq / p.Hq;
  if (b >= p.B) return;
  const Scores& to = p.grad_bias;
  write_number(to.row(b, h, m) + n * to.stride_n * element_bytes(to.dtype), to.dtype, 0.0f);
}

}  // namespace attn::cuda
