// Rows that asynchronous copies take, under a band, sequences or a tensor of biases alone: what the
// kernels without the other parts of the mask serve. Every bucket of widths and dtype, against the
// plain loops.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "calls.h"
#include "check.h"
#include "close.h"
#include "naive_attention.h"
#include "repeated_calls.h"

namespace {

struct Widths {
  int64_t K, Kv;
};
// Each bucket full, and with K or Kv short of it.
constexpr Widths kWidths[] = {{32, 32},  {64, 24},   {40, 64},   {96, 80},
                              {88, 128}, {128, 128}, {192, 160}, {256, 256}};

enum class Seen { kAll, kCausal, kWindow, kSequences, kBiased, kBiasedWindow };

bool is_biased(Seen seen) { return seen == Seen::kBiased || seen == Seen::kBiasedWindow; }

// More than whole tiles of queries and keys. Rows of biases are aligned as well.
Shape shape_of(const Widths& widths, Seen seen) {
  const int64_t Hq = widths.K <= 64 ? 2 : 1, Mkv = is_biased(seen) ? 152 : 150;
  const int64_t B = is_biased(seen) ? 2 : 1;
  return {.B = B, .Mq = 131, .Mkv = Mkv, .Hq = Hq, .Hkv = 1, .K = widths.K, .Kv = widths.Kv};
}

void add_mask(Calls& calls, Seen seen) {
  switch (seen) {
    case Seen::kAll: return;
    case Seen::kCausal: calls.mask.band = {ATTN_UNBOUNDED, 0, ATTN_ANCHOR_TOP_LEFT, 0}; return;
    case Seen::kBiased: return;
    case Seen::kBiasedWindow:
    case Seen::kWindow: calls.mask.band = {20, 3, ATTN_ANCHOR_BOTTOM_RIGHT, 0}; return;
    case Seen::kSequences: calls.mask.band = {ATTN_UNBOUNDED, 0, ATTN_ANCHOR_BOTTOM_RIGHT, 0};
  }
}

// Empty ones, short ones, one over a tile's end; queries and keys before, between and after them.
void add_sequences(Arrays& arrays) {
  arrays.q_start = Array::integers({2, 2, 7, 90, 129});
  arrays.k_start = Array::integers({0, 1, 12, 90});
  arrays.k_len = Array::integers({4, 9, 70, 0});
}

// Of every score; or, under a window, the same for all batch elements and heads. Key 17 and a few
// pairs are excluded, and what is there is NaN.
void add_biases(Arrays& arrays, attn_dtype dtype, Seen seen) {
  const int64_t B = arrays.query.extent(0), Mq = arrays.query.extent(1),
                Hq = arrays.query.extent(2);
  const int64_t Mkv = arrays.key.extent(1);
  const bool repeats = seen == Seen::kBiasedWindow;
  arrays.add_bias(dtype, {repeats ? 1 : B, repeats ? 1 : Hq, Mq, Mkv}, 7);
  for (int64_t place = 0; place < arrays.bias.size(); ++place) {
    if (place % Mkv == 17 || place % 31 == 3) arrays.bias.set(place, -HUGE_VAL);
  }
  for (Array* rows : {&arrays.key, &arrays.value}) {
    const int64_t row = rows->extent(2) * rows->extent(3);
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t c = 0; c < row; ++c) rows->set((b * Mkv + 17) * row + c, NAN);
    }
  }
}

// No query sees the keys after the last one under a causal mask.
void spoil_unseen(Arrays& arrays) {
  for (Array* rows : {&arrays.key, &arrays.value}) {
    const int64_t row = rows->extent(2) * rows->extent(3);
    for (int64_t at = arrays.query.extent(1) * row; at < rows->size(); ++at) rows->set(at, NAN);
  }
}

// The last query sees the last of the keys that a causal mask lets it see alone.
void spoil_last_seen(Arrays& arrays) {
  const int64_t row = arrays.query.extent(1) - 1, width = arrays.value.extent(3);
  for (int64_t c = 0; c < width; ++c) {
    arrays.value.set(row * width + c, c % 2 == 0 ? NAN : HUGE_VAL);
  }
}

void check_gradients(const std::string& context, Calls& calls, const NaiveBackward& expected,
                     double tolerance) {
  CHECK_IN(calls.error.message, calls.run_backward() == ATTN_OK);
  const Arrays& a = calls.arrays;
  check_close(context, "grad_query", a.grad_query, expected.grad_query, tolerance);
  check_close(context, "grad_key", a.grad_key, expected.grad_key, tolerance);
  check_close(context, "grad_value", a.grad_value, expected.grad_value, tolerance);
  if (a.bias.size() > 0) {
    check_close(context, "grad_bias", a.grad_bias, expected.grad_bias, tolerance);
  }
}

// Those of queries and biases alone: NaN in excluded keys reaches them no more than all together.
void check_gradients_beside_keys(const std::string& context, Calls& calls,
                                 const NaiveBackward& expected, double tolerance) {
  calls.backward.grad_key = calls.backward.grad_value = nullptr;
  Arrays& a = calls.arrays;
  for (Array* array : {&a.grad_query, &a.grad_bias}) array->fill(kGarbage);
  CHECK_IN(calls.error.message, calls.run_backward() == ATTN_OK);
  check_close(context, "grad_query alone", a.grad_query, expected.grad_query, tolerance);
  check_close(context, "grad_bias alone", a.grad_bias, expected.grad_bias, tolerance);
}

void test(const Precision& precision, const Widths& widths, Seen seen) {
  const std::string context = std::string(precision.name) + " K " + std::to_string(widths.K) +
                              " Kv " + std::to_string(widths.Kv) + " mask " +
                              std::to_string(static_cast<int>(seen));
  Arrays arrays(precision.dtype, precision.dtype, shape_of(widths, seen), 1);
  if (seen == Seen::kSequences) add_sequences(arrays);
  if (is_biased(seen)) add_biases(arrays, precision.dtype, seen);
  if (seen == Seen::kCausal) spoil_unseen(arrays);
  Calls calls(std::move(arrays));
  add_mask(calls, seen);
  Arrays& a = calls.arrays;
  const NaiveForward forward = naive_forward(a, calls.mask);
  for (Array* array : calls.forward_outputs()) array->fill(kGarbage);
  for (Array* array : calls.backward_outputs()) array->fill(kGarbage);
  CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
  check_close(context, "out", a.out, forward.out, precision.tolerance);
  check_close(context, "lse", a.lse, forward.lse, precision.tolerance);
  const double grad_tolerance =
      precision.tolerance * (2.0 + 0.5 * std::sqrt(static_cast<double>(widths.Kv)));
  const NaiveBackward backward = naive_backward(a, calls.mask);
  check_gradients(context, calls, backward, grad_tolerance);
  if (seen == Seen::kAll || is_biased(seen)) check_deterministic(context, calls);
  if (is_biased(seen)) check_gradients_beside_keys(context, calls, backward, grad_tolerance);
  if (seen != Seen::kCausal) return;
  spoil_last_seen(a);
  CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
  const int64_t last = (a.query.extent(1) - 1) * a.query.extent(2) * widths.Kv;
  check_close(context, "out beside NaN", a.out, forward.out, precision.tolerance,
              [&](int64_t place) { return place < last; });
  for (int64_t place = last; place < a.out.size(); ++place) {
    CHECK_IN(context.c_str(), !std::isfinite(a.out.get(place)));
  }
}

// Queries that have no keys at all still get their gradients.
void test_no_keys(const Precision& precision) {
  const Shape shape{.B = 1, .Mq = 70, .Mkv = 0, .Hq = 2, .Hkv = 1, .K = 16, .Kv = 16};
  Calls calls(Arrays(precision.dtype, precision.dtype, shape, 1));
  Array& gradient = calls.arrays.grad_query;
  gradient.fill(kGarbage);
  CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
  CHECK_IN(calls.error.message, calls.run_backward() == ATTN_OK);
  for (int64_t i = 0; i < gradient.size(); ++i) CHECK_IN(precision.name, gradient.get(i) == 0.0);
}

}  // namespace

// With the argument "narrow": rows of at most 256 bytes alone.
int main(int argc, char** argv) {
  const bool runs_all = argc == 1 || std::string(argv[1]) != "narrow";
  const auto run = [&](const Precision& precision, const Widths& widths, Seen seen) {
    const bool is_narrow = std::max(widths.K, widths.Kv) * precision.dtype.bits <= 256 * 8;
    if (runs_all || is_narrow) test(precision, widths, seen);
  };
  constexpr Seen kSeen[] = {Seen::kAll, Seen::kCausal, Seen::kWindow, Seen::kSequences};
  for (int p = 0; p < 3; ++p) test_no_keys(kPrecisions[p]);  // not float64
  run(kPrecisions[0], {64, 64}, Seen::kCausal);  // float32 in one pass, where there is room
  int turn = 0;
  for (const Widths& widths : kWidths) {
    for (int p = 0; p < 3; ++p) run(kPrecisions[p], widths, kSeen[turn++ % 4]);  // not float64
    run(kPrecisions[turn / 3 % 3], widths, Seen::kBiased);
    if (widths.K == widths.Kv || widths.Kv > 128) continue;
    run(kPrecisions[1 + turn % 2], widths, Seen::kBiasedWindow);
  }
  return check::outcome();
}
