// The backward in one pass over the scores, for rows of at most 256 bytes on GPUs with enough
// shared memory: what the host sees of it.
#pragma once

#include <cstdint>

#include "cuda/runtime.h"
#include "cuda/sm80/backward_arguments.h"

namespace attn::cuda {

constexpr int kOnePassQueries = 64, kOnePassKeys = 128, kOnePassThreads = 256;

constexpr int kOnePassRowBytes = 256;  // of the widest rows
constexpr int kOnePassFactsBytes = 64;

// Keys and values; two stages of queries, dO and three statistics; P and dS; a few facts of the
// block; perhaps biases. Each row is 16 bytes longer than its elements.
constexpr int one_pass_shared_bytes(int element_bytes, int width, bool has_bias) {
  const int row = element_bytes * width + 16;
  const int pairs = kOnePassQueries * (element_bytes * kOnePassKeys + 16);
  const int stage = kOnePassQueries * (2 * row + 3 * 4);
  return 2 * kOnePassKeys * row + 2 * stage + (has_bias ? 3 : 2) * pairs + kOnePassFactsBytes;
}

// Of a dBias that is summed: keys and values have two stages as well.
constexpr int one_pass_bias_shared_bytes(int width) {
  return one_pass_shared_bytes(2, width, true) + kOnePassKeys * (2 * width + 16);
}

// What its blocks of threads share, in the workspace. Counts begin at 0.
struct OnePassArguments {
  BackwardArguments backward;
  int32_t* tickets;  // of blocks of threads that have begun
  int32_t* turns;    // [B, Hq, tiles of queries]: tiles of keys that have added to dQ
  void* sums;        // [B, Hq, tiles of queries, kOnePassQueries * width] float32: dQ so far
};

namespace sm80 {

// Bytes of a call's OnePassArguments; 0 where the pass cannot serve shapes, dtypes and mask.
struct OnePassBytes {
  int64_t turns = 0, sums = 0;

  explicit operator bool() const { return sums > 0; }
};
OnePassBytes one_pass_bytes(const BackwardProblem& problem, const DeviceProperties& device);

// Whether rows lie so that it can copy them.
bool is_aligned_for_one_pass(const BackwardArguments& arguments);

// Queues dQ, dK and dV, where they are wanted, and dBias where arguments.stores_grad_bias.
void launch_one_pass(const OnePassArguments& arguments, void* stream);
void launch_one_pass_64(const OnePassArguments& arguments, void* stream);
void launch_one_pass_128(const OnePassArguments& arguments, void* stream);

// Whether the tiles serve a dBias that is summed over batch elements or heads; and queues it.
bool sums_bias_in_one_pass(const BackwardArguments& arguments);
void launch_one_pass_bias(const BackwardArguments& arguments, void* stream);
void launch_one_pass_bias_64(const BackwardArguments& arguments, void* stream);
void launch_one_pass_bias_128(const BackwardArguments& arguments, void* stream);

}  // namespace sm80
}  // namespace attn::cuda
