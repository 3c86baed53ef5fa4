// The loops for any machine; the compiler may fuse a * x + y here.
#include "ceiling_loops.h"

namespace attn::python {
namespace {

constexpr int kSums = 48;

// Read anew for each sum, so that the compiler cannot know two of them to be equal.
volatile float some_float = 0.999f;
volatile float sink;

int64_t multiply_float32(int64_t rounds) {
  const float factor = some_float;
  float sums[kSums];
  for (float& sum : sums) sum = some_float;
  for (int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * factor + factor;
  }
  for (float sum : sums) sink = sum;
  return rounds * kSums * 2;
}

int64_t read(const void* data, size_t bytes) {
  const auto* words = static_cast<const int64_t*>(data);
  int64_t sums[8] = {};
  for (size_t i = 0; i < bytes / sizeof(int64_t); i += 8) {
    for (int j = 0; j < 8; ++j) sums[j] += words[i + j];
  }
  int64_t sum = 0;
  for (int64_t part : sums) sum += part;
  return sum;
}

}  // namespace

CeilingLoops ceiling_loops() {
  return {.multiply_float32 = multiply_float32, .multiply_bfloat16 = nullptr, .read = read};
}

}  // namespace attn::python
