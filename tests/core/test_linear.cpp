// A linear layer against plain loops, over dtypes and shapes, under the kernels that ATTN_CPU_ISA
// names.
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "check.h"
#include "close.h"
#include "forced_isa.h"
#include "linear_calls.h"

namespace {

constexpr LinearShape kShapes[] = {
    {},
    {.N = 1, .E = 1, .F = 1},
    {.N = 1, .E = 512, .F = 96},
    {.N = 2, .E = 31, .F = 65},
    {.N = 8, .E = 64, .F = 130},
    {.N = 13, .E = 100, .F = 17},
    {.N = 5, .E = 1030, .F = 33},
    {.N = 0},
    {.F = 0},
};

// The sums, and what they add up to without its signs.
struct NaiveLinear {
  std::vector<double> out, terms;

  NaiveLinear(const LinearCall& call, const LinearShape& s, bool with_bias) {
    for (int64_t n = 0; n < s.N; ++n) {
      for (int64_t f = 0; f < s.F; ++f) {
        double sum = with_bias ? call.bias_array.get(f) : 0.0, terms = std::fabs(sum);
        for (int64_t e = 0; e < s.E; ++e) {
          const double term = call.x_array.get(n * s.E + e) * call.weight_array.get(f * s.E + e);
          sum += term;
          terms += std::fabs(term);
        }
        out.push_back(sum);
        this->terms.push_back(terms);
      }
    }
  }
};

void run_case(const Precision& precision, const LinearShape& s, bool with_bias) {
  char context[100];
  std::snprintf(context, sizeof(context), "%s N%lld E%lld F%lld%s", precision.name,
                static_cast<long long>(s.N), static_cast<long long>(s.E),
                static_cast<long long>(s.F), with_bias ? "" : " without bias");
  LinearCall call(precision.dtype, s);
  if (!with_bias) call.args.bias = nullptr;
  CHECK_IN(context, call.run() == ATTN_OK);
  const NaiveLinear naive(call, s, with_bias);
  check_sums(context, "out", call.out_array, naive.out, naive.terms, 0.0);
}

// A row has the bits that it has alone, on any number of threads.
void run_bits(const Precision& precision) {
  const LinearShape s{.N = 7, .E = 72, .F = 3000};
  LinearCall together(precision.dtype, s);
  together.exec.num_threads = 3;
  CHECK_IN(precision.name, together.run() == ATTN_OK);
  const int64_t row_bytes = s.F * precision.dtype.bits / 8;
  for (int64_t n = 0; n < s.N; ++n) {
    LinearCall alone(precision.dtype, {.N = 1, .E = s.E, .F = s.F});
    for (int64_t e = 0; e < s.E; ++e) alone.x_array.set(e, together.x_array.get(n * s.E + e));
    CHECK_IN(precision.name, alone.run() == ATTN_OK);
    CHECK_IN(precision.name, std::memcmp(alone.out_array.bytes().data(),
                                         together.out_array.bytes().data() + n * row_bytes,
                                         static_cast<size_t>(row_bytes)) == 0);
  }
}

// Rows cut out of wider ones, and one row of the input for all.
void run_strides() {
  const LinearShape s{.N = 4, .E = 12, .F = 10};
  LinearCall wide(kFloat32, {.N = s.N, .E = 2 * s.E, .F = s.F});
  for (EditableTensor* each : {&wide.x, &wide.weight}) each->shape[1] = s.E;
  wide.x.strides[0] = 0;
  CHECK(wide.run() == ATTN_OK);
  LinearCall plain(kFloat32, s);
  for (int64_t i = 0; i < s.N * s.E; ++i) plain.x_array.set(i, wide.x_array.get(i % s.E));
  for (int64_t i = 0; i < s.F * s.E; ++i) {
    plain.weight_array.set(i, wide.weight_array.get(i / s.E * 2 * s.E + i % s.E));
  }
  CHECK(plain.run() == ATTN_OK);
  CHECK(wide.out_array.bytes() == plain.out_array.bytes());
}

}  // namespace

int main() {
  if (!runs_forced_isa()) return check::kSkipped;
  for (const Precision& precision : kPrecisions) {
    for (const LinearShape& shape : kShapes) {
      run_case(precision, shape, true);
      run_case(precision, shape, false);
    }
    run_bits(precision);
  }
  run_strides();
  return check::outcome();
}
