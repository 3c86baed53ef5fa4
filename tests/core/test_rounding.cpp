// Results of which rounding could leave little: gradients of rows whose lse is so large that
// float32 has lost the logarithm of the number of their keys, or whose keys are so few that dP is
// nearly rowsum(dO O); and sums of thousands of numbers that are all positive.
#include <cmath>
#include <cstdio>
#include <string>

#include "calls.h"
#include "check.h"
#include "close.h"
#include "forced_isa.h"
#include "naive_attention.h"

namespace {

constexpr Precision kNarrow[] = {kPrecisions[0], kPrecisions[1], kPrecisions[2]};
constexpr Shape kShapes[] = {
    {.B = 1, .Mq = 20, .Mkv = 90, .Hq = 2, .Hkv = 1, .K = 24, .Kv = 40},
    {.B = 1, .Mq = 3, .Mkv = 600, .Hq = 2, .Hkv = 1, .K = 16, .Kv = 16},
};

void run_both(const std::string& context, Calls& calls) {
  for (Array* array : calls.forward_outputs()) array->fill(kGarbage);
  for (Array* array : calls.backward_outputs()) array->fill(kGarbage);
  CHECK_IN((context + calls.error.message).c_str(), calls.run_forward() == ATTN_OK);
  CHECK_IN((context + calls.error.message).c_str(), calls.run_backward() == ATTN_OK);
}

// Beside a large bias float32 would lose the scores too: they are 0 where it is added.
void run_large_bias(const Precision& precision, const Shape& s, double number) {
  const std::string context = std::string(precision.name) + ", bias " + std::to_string(number);
  Arrays arrays(precision.dtype, precision.dtype, s, 1);
  arrays.add_bias(kFloat32, {1, 1, s.Mq, 1}, 2);
  for (int64_t i = 0; i < s.Mq; ++i) {
    const bool is_large = i % 2 == 0;
    arrays.bias.set(i, is_large ? number : 0.0);
    for (int64_t place = 0; is_large && place < arrays.query.size(); ++place) {
      if (place / s.K / s.Hq % s.Mq == i) arrays.query.set(place, 0.0);
    }
  }
  Calls calls(std::move(arrays));
  const NaiveForward forward = naive_forward(calls.arrays, calls.mask);
  const NaiveBackward backward = naive_backward(calls.arrays, calls.mask);
  run_both(context, calls);
  const double tolerance = precision.tolerance * (2.0 + 0.5 * std::sqrt(1.0 * s.Kv));
  check_close(context, "out", calls.arrays.out, forward.out, precision.tolerance);
  check_close(context, "grad_query", calls.arrays.grad_query, backward.grad_query, tolerance);
  check_close(context, "grad_key", calls.arrays.grad_key, backward.grad_key, tolerance);
  check_close(context, "grad_value", calls.arrays.grad_value, backward.grad_value, tolerance);
}

// A query that sees a single key gives its score no gradient.
void run_single_keys(const Precision& precision, const Shape& s) {
  Calls calls(Arrays(precision.dtype, precision.dtype, s, 1));
  calls.mask.band = {0, 0, ATTN_ANCHOR_TOP_LEFT, 0};
  calls.backward.grad_lse = nullptr;
  run_both(precision.name, calls);
  constexpr double kLargest = 1e-4;
  for (const Array* gradient : {&calls.arrays.grad_query, &calls.arrays.grad_key}) {
    double largest = 0.0;
    for (int64_t i = 0; i < gradient->size(); ++i) {
      largest = std::fmax(largest, std::fabs(gradient->get(i)));
    }
    CHECK_IN(precision.name, largest <= kLargest);
  }
}

// What is lost in each addition, if always on the same side, is lost thousands of times.
void run_long_sums(const Precision& precision, const Shape& s) {
  Calls calls(Arrays(precision.dtype, precision.dtype, s, 1));
  for (Array* array : {&calls.arrays.value, &calls.arrays.grad_out}) {
    for (int64_t i = 0; i < array->size(); ++i) array->set(i, 2.5 + array->get(i));
  }
  const NaiveForward forward = naive_forward(calls.arrays, calls.mask);
  const NaiveBackward backward = naive_backward(calls.arrays, calls.mask);
  const std::string context = std::string(precision.name) + ", long sums";
  run_both(context, calls);
  check_close(context, "out", calls.arrays.out, forward.out, precision.tolerance);
  check_close(context, "grad_value", calls.arrays.grad_value, backward.grad_value,
              precision.tolerance);
}

// On a GPU, where no sum is long, results of 16 bits are the exact ones, rounded, but for a
// hundredth of what that takes of the largest: a yardstick may be as good by luck.
void run_few_keys(const Precision& precision, const Shape& s) {
  const double unit = same(precision.dtype, kBFloat16) ? 0x1p-8 : 0x1p-11;
  Calls calls(Arrays(precision.dtype, precision.dtype, s, 1));
  const NaiveForward forward = naive_forward(calls.arrays, calls.mask);
  const NaiveBackward backward = naive_backward(calls.arrays, calls.mask);
  run_both(precision.name, calls);
  const auto check_rounded = [&](const char* name, const Array& got,
                                 const std::vector<double>& exact) {
    double largest = 0.0, excess = 0.0;
    for (size_t i = 0; i < exact.size(); ++i) {
      const double error = std::fabs(got.get(static_cast<int64_t>(i)) - exact[i]);
      largest = std::fmax(largest, std::fabs(exact[i]));
      const double more = std::isnan(error) ? HUGE_VAL : error - unit * std::fabs(exact[i]);
      excess = std::fmax(excess, more);
    }
    CHECK_IN((std::string(precision.name) + ", few keys: " + name).c_str(),
             excess <= 0.01 * unit * largest);
  };
  check_rounded("out", calls.arrays.out, forward.out);
  check_rounded("grad_query", calls.arrays.grad_query, backward.grad_query);
  check_rounded("grad_key", calls.arrays.grad_key, backward.grad_key);
  check_rounded("grad_value", calls.arrays.grad_value, backward.grad_value);
}

}  // namespace

int main() {
  if (!runs_forced_isa()) return check::kSkipped;
  for (const Precision& precision : kNarrow) {
    for (const Shape& shape : kShapes) {
      for (const double number : {-1e4, -1e9, 1e7}) run_large_bias(precision, shape, number);
      run_single_keys(precision, shape);
    }
    run_long_sums(precision, {.B = 1, .Mq = 20, .Mkv = 3000, .Hq = 1, .Hkv = 1, .K = 16, .Kv = 16});
    run_long_sums(precision, {.B = 1, .Mq = 3000, .Mkv = 20, .Hq = 1, .Hkv = 1, .K = 16, .Kv = 16});
  }
  for (const Precision& precision : {kPrecisions[1], kPrecisions[2]}) {
    if (Array::device_type == ATTN_DEVICE_CPU) break;
    run_few_keys(precision, {.B = 1, .Mq = 17, .Mkv = 3, .Hq = 1, .Hkv = 1, .K = 7, .Kv = 53});
    run_few_keys(precision, {.B = 1, .Mq = 40, .Mkv = 32, .Hq = 2, .Hkv = 2, .K = 64, .Kv = 64});
  }
  return check::outcome();
}
