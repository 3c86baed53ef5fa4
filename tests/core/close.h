// How close to the plain loops a result must come, and the check that it does.
#pragma once

#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "array.h"
#include "check.h"

struct Precision {
  const char* name;
  attn_dtype dtype;
  double tolerance;  // of a result, relative to 1 + its largest magnitude
};

constexpr Precision kPrecisions[] = {
    {"float32", kFloat32, 2e-6},
    {"bfloat16", kBFloat16, 1.5e-2},
    {"float16", kFloat16, 2e-3},
    {"float64", kFloat64, 1e-13},
};

// Whether the device of the tests has kernels for it.
inline bool is_served(const Precision& precision) {
  return Array::device_type == ATTN_DEVICE_CPU || !same(precision.dtype, kFloat64);
}

inline double tolerance_of(attn_dtype dtype) {
  for (const Precision& precision : kPrecisions) {
    if (same(precision.dtype, dtype)) return precision.tolerance;
  }
  return 0.0;
}

// Reports `got` if it differs from `expected` by more than `tolerance`, or than its own dtype can
// tell. Only the places that `counts` accepts are looked at.
inline void check_close(
    const std::string& context, const char* name, const Array& got,
    const std::vector<double>& expected, double tolerance,
    const std::function<bool(int64_t place)>& counts = [](int64_t) { return true; }) {
  tolerance = std::fmax(tolerance, tolerance_of(got.dtype()));
  double largest = 0.0, worst = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const int64_t place = static_cast<int64_t>(i);
    const double value = got.get(place);
    if (!counts(place) || value == expected[i]) continue;  // equal: both may be -infinity
    largest = std::fmax(largest, std::fabs(expected[i]));
    worst = std::isnan(value) ? HUGE_VAL : std::fmax(worst, std::fabs(value - expected[i]));
  }
  if (worst <= tolerance * (1.0 + largest)) return;
  char message[400];
  std::snprintf(message, sizeof(message), "%s: %s is off by %.3g, largest value %.3g",
                context.c_str(), name, worst, largest);
  check::fail(__FILE__, __LINE__, "close to the plain loops", message);
}

// Reports `got` if it differs from sums by more than `tolerance` of what they add up without its
// signs, or of 1.
inline void check_sums(const std::string& context, const char* name, const Array& got,
                       const std::vector<double>& sums, const std::vector<double>& terms,
                       double tolerance) {
  tolerance = std::fmax(tolerance, tolerance_of(got.dtype()));
  for (size_t i = 0; i < sums.size(); ++i) {
    const double value = got.get(static_cast<int64_t>(i));
    if (std::fabs(value - sums[i]) <= tolerance * (1.0 + terms[i])) continue;
    char message[400];
    std::snprintf(message, sizeof(message), "%s: %s[%zu] is %.6g, not %.6g, a sum of %.3g",
                  context.c_str(), name, i, value, sums[i], terms[i]);
    check::fail(__FILE__, __LINE__, "close to the plain loops", message);
  }
}
