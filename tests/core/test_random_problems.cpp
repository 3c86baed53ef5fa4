// Forward and backward against plain loops on random shapes, dtypes and masks, with NaN and
// infinity in keys: what does not see such a key must not notice it.
// Arguments: how many problems, and the first one's seed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>

#include "calls.h"
#include "chance.h"
#include "check.h"
#include "close.h"
#include "naive_attention.h"

namespace {

constexpr int64_t kWidths[] = {1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 80, 129, 264};
constexpr int64_t kQueries[] = {1, 2, 5, 6, 7, 47, 48, 49, 127, 128, 130, 200};
constexpr int64_t kKeys[] = {0, 1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 128, 130, 255, 257, 400};

// Small enough for the plain loops to take milliseconds.
Shape random_shape(Generator& generator) {
  constexpr int64_t kMostProducts = 1500000;
  Shape s;
  do {
    s.B = 1 + below(generator, 2);
    s.Hkv = 1 + below(generator, 2);
    s.Hq = s.Hkv * (1 + below(generator, 3));
    s.Mq = any_of(generator, kQueries);
    s.Mkv = any_of(generator, kKeys);
    s.K = any_of(generator, kWidths);
    s.Kv = any_of(generator, kWidths);
  } while (s.B * s.Hq * s.Mq * s.Mkv * (s.K + s.Kv) > kMostProducts);
  return s;
}

attn_band random_band(const Shape& s, Generator& generator) {
  const auto side = [&] {
    return one_in(generator, 2) ? ATTN_UNBOUNDED : below(generator, s.Mkv + 20) - 10;
  };
  return {side(), side(), static_cast<int32_t>(below(generator, 2)), 0};
}

void add_random_bias(Arrays& arrays, const Shape& s, attn_dtype dtype, Generator& generator) {
  const auto extent = [&](int64_t n) { return one_in(generator, 3) ? 1 : n; };
  const attn_dtype choices[] = {dtype, kFloat32, kBool};
  arrays.add_bias(any_of(generator, choices),
                  {extent(s.B), extent(s.Hq), extent(s.Mq), extent(s.Mkv)}, generator());
  if (same(arrays.bias.dtype(), kBool)) return;
  for (int64_t i = 0; i < arrays.bias.size(); ++i) {
    if (one_in(generator, 6)) arrays.bias.set(i, -HUGE_VAL);
  }
}

// Spoils one key's rows of `keys` and `values`, and tells which queries see it.
class SpoiltKey {
 public:
  SpoiltKey(const Arrays& arrays, const attn_mask& mask, Generator& generator)
      : arrays_(arrays),
        mask_(mask),
        b_(below(generator, arrays.key.extent(0))),
        j_(below(generator, std::max<int64_t>(arrays.key.extent(1), 1))),
        h_(below(generator, arrays.key.extent(2))) {}

  void spoil(Array& rows, Generator& generator) const {
    constexpr double kPoisons[] = {NAN, HUGE_VAL, -HUGE_VAL};
    const double poison = any_of(generator, kPoisons);
    for (int64_t c = 0; c < rows.extent(3); ++c) rows.set(rows.at(b_, j_, h_, c), poison);
  }

  bool is_seen_by(int64_t b, int64_t h, int64_t i) const {
    const int64_t group = arrays_.query.extent(2) / arrays_.key.extent(2);
    return b == b_ && h / group == h_ && naive_sees(arrays_, mask_, b, h, i, j_);
  }

  bool is_seen() const {
    for (int64_t h = 0; h < arrays_.query.extent(2); ++h) {
      for (int64_t i = 0; i < arrays_.query.extent(1); ++i) {
        if (is_seen_by(b_, h, i)) return true;
      }
    }
    return false;
  }

 private:
  const Arrays& arrays_;
  const attn_mask& mask_;
  int64_t b_, j_, h_;
};

std::string describe(unsigned seed, const Precision& precision, const Shape& s) {
  char text[200];
  std::snprintf(text, sizeof(text), "problem %u: %s B %d Mq %d Mkv %d Hq %d Hkv %d K %d Kv %d",
                seed, precision.name, static_cast<int>(s.B), static_cast<int>(s.Mq),
                static_cast<int>(s.Mkv), static_cast<int>(s.Hq), static_cast<int>(s.Hkv),
                static_cast<int>(s.K), static_cast<int>(s.Kv));
  return text;
}

Arrays random_arrays(const Precision& precision, const Shape& s, Generator& generator) {
  const bool is_double = same(precision.dtype, kFloat64);
  const attn_dtype out_dtype = is_double ? kFloat64 : kPrecisions[below(generator, 3)].dtype;
  Arrays arrays(precision.dtype, one_in(generator, 3) ? out_dtype : precision.dtype, s,
                generator());
  if (!one_in(generator, 3)) add_random_bias(arrays, s, precision.dtype, generator);
  return arrays;
}

void run_problem(unsigned seed) {
  Generator generator(seed);
  const Precision& precision = kPrecisions[below(generator, 4)];
  const Shape shape = random_shape(generator);
  const std::string context = describe(seed, precision, shape);
  Calls calls(random_arrays(precision, shape, generator));
  Arrays& a = calls.arrays;
  if (one_in(generator, 2)) calls.mask.band = random_band(shape, generator);
  if (one_in(generator, 4)) calls.mask.dropout = {.p = 0.25, .seed = generator(), .offset = seed};
  calls.exec.num_threads = 1 + static_cast<int32_t>(below(generator, 3));

  const NaiveForward forward = naive_forward(a, calls.mask);
  const NaiveBackward backward = naive_backward(a, calls.mask);
  // The plain loops are done: from here on the key is spoilt for the library alone.
  const bool is_spoilt = shape.Mkv > 0 && one_in(generator, 2);
  const SpoiltKey key(a, calls.mask, generator);
  if (is_spoilt && one_in(generator, 2)) key.spoil(a.key, generator);
  if (is_spoilt) key.spoil(a.value, generator);

  CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
  CHECK_IN(calls.error.message, calls.run_backward() == ATTN_OK);

  // The backward reads the forward's output, rounded as it is.
  const double tolerance = std::max(precision.tolerance, tolerance_of(a.out.dtype()));
  // Gradients are differences of dot products over Kv, whose errors do not cancel.
  const double grad_tolerance = tolerance * (2.0 + 0.25 * std::sqrt(1.0 * shape.Kv));
  const auto is_clean_row = [&](int64_t row) {  // of [B, Mq, Hq]
    return !is_spoilt ||
           !key.is_seen_by(row / (shape.Hq * shape.Mq), row % shape.Hq, row / shape.Hq % shape.Mq);
  };
  check_close(context, "out", a.out, forward.out, tolerance,
              [&](int64_t place) { return is_clean_row(place / shape.Kv); });
  check_close(context, "grad_query", a.grad_query, backward.grad_query, grad_tolerance,
              [&](int64_t place) { return is_clean_row(place / shape.K); });
  if (is_spoilt && key.is_seen()) return;
  check_close(context, "lse", a.lse, forward.lse, tolerance);
  check_close(context, "grad_key", a.grad_key, backward.grad_key, grad_tolerance);
  check_close(context, "grad_value", a.grad_value, backward.grad_value, grad_tolerance);
  check_close(context, "grad_bias", a.grad_bias, backward.grad_bias, grad_tolerance);
}

}  // namespace

int main(int argc, char** argv) {
  const int problems = argc > 1 ? std::atoi(argv[1]) : 100;
  const unsigned first_seed = argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 1;
  const char* isa = nullptr;
  attn_error error{};
  if (attn_cpu_isa(&isa, &error) == ATTN_ERROR_UNSUPPORTED) {
    std::printf("skipped: %s\n", error.message);
    return check::kSkipped;
  }
  for (int i = 0; i < problems; ++i) run_problem(first_seed + i);
  return check::outcome();
}
