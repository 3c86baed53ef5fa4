// Forward and backward against plain loops on random shapes, dtypes and masks, with NaN and
// infinity in keys: what does not see such a key must not notice it.
// Arguments: how many problems, and the first one's seed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "calls.h"
#include "chance.h"
#include "check.h"
#include "close.h"
#include "forced_isa.h"
#include "naive_attention.h"
#include "naive_mask.h"
#include "random_mask.h"
#include "repeated_calls.h"

namespace {

constexpr int64_t kWidths[] = {1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 80, 129, 264};
constexpr int64_t kQueries[] = {1, 2, 5, 6, 7, 47, 48, 49, 127, 128, 130, 200, 300};
constexpr int64_t kKeys[] = {0,  1,   2,   3,   15,  16,  17,  63,   64,
                             65, 127, 128, 130, 255, 257, 400, 1100, 2300};

// Of a query and a key, in all: few enough for the plain loops, or an emulated GPU, to take
// milliseconds.
const int64_t kMostProducts = Array::device_type == ATTN_DEVICE_CPU ? 1500000 : 300000;

Shape random_shape(Generator& generator) {
  Shape s;
  do {
    s.B = 1 + below(generator, 3) / 2;
    s.Hkv = 1 + below(generator, 2);
    s.Hq = s.Hkv * (1 + below(generator, 3));
    s.Mq = any_of(generator, kQueries);
    s.Mkv = any_of(generator, kKeys);
    s.K = any_of(generator, kWidths);
    s.Kv = any_of(generator, kWidths);
  } while (s.B * s.Hq * s.Mq * s.Mkv * (s.K + s.Kv) > kMostProducts);
  return s;
}

// Rows of key or value that hold NaN or infinity: those nobody sees, and at times one more.
class SpoiltKeys {
 public:
  SpoiltKeys(const Arrays& arrays, const attn_mask& mask, Generator& generator)
      : seen_(arrays, mask),
        Mkv_(arrays.key.extent(1)),
        Hkv_(arrays.key.extent(2)),
        group_(arrays.query.extent(2) / Hkv_) {
    const int64_t rows = arrays.key.extent(0) * Mkv_ * Hkv_;
    if (rows == 0 || one_in(generator, 3)) return;
    for (int64_t row = 0; row < rows; ++row) {
      if (!is_seen(row)) unseen_.push_back(row);
    }
    const int64_t row = below(generator, rows);
    if (one_in(generator, 2) && is_seen(row)) seen_row_ = row;
  }

  void spoil(Array& keys, Generator& generator) const {
    for (const int64_t row : unseen_) spoil_row(keys, row, generator);
    if (has_seen()) spoil_row(keys, seen_row_, generator);
  }

  // The features [B, Mkv, Hq, width] of the keys that nobody sees.
  void spoil_features(Array& features, Generator& generator) const {
    for (const int64_t row : unseen_) {
      for (int64_t g = 0; g < group_; ++g) spoil_row(features, row * group_ + g, generator);
    }
  }

  bool has_seen() const { return seen_row_ >= 0; }

  bool are_seen_by(int64_t b, int64_t h, int64_t query_row) const {
    if (!has_seen() || seen_row_ % Hkv_ != h / group_) return false;
    const int64_t row = seen_row_ / Hkv_;
    return row / Mkv_ == b && seen_.by(b, row % Mkv_, h, query_row);
  }

 private:
  bool is_seen(int64_t row) const {
    return seen_.by_any(row / Hkv_ / Mkv_, row / Hkv_ % Mkv_, row % Hkv_);
  }

  static void spoil_row(Array& keys, int64_t row, Generator& generator) {
    constexpr double kPoisons[] = {NAN, HUGE_VAL, -HUGE_VAL};
    const double poison = any_of(generator, kPoisons);
    const int64_t width = keys.extent(3);
    for (int64_t c = 0; c < width; ++c) keys.set(row * width + c, poison);
  }

  const SeenKeys seen_;
  const int64_t Mkv_, Hkv_, group_;
  std::vector<int64_t> unseen_;  // rows of [B, Mkv, Hkv]
  int64_t seen_row_ = -1;
};

std::string describe(unsigned seed, const Precision& precision, const Shape& s, const Arrays& a,
                     const attn_mask& mask) {
  std::string text = "problem " + std::to_string(seed) + ": " + precision.name;
  const auto add = [&](const char* name, int64_t number) {
    text += std::string(" ") + name + " " + std::to_string(number);
  };
  add("B", s.B), add("Mq", s.Mq), add("Mkv", s.Mkv), add("Hq", s.Hq), add("Hkv", s.Hkv);
  add("K", s.K), add("Kv", s.Kv);
  if (a.q_start.exists()) add("sequences", a.q_start.extent(0) - 1);
  if (a.k_len.exists()) text += " k_len";
  if (a.block_table.exists()) add("page_size", mask.pages.page_size);
  if (a.offsets.exists()) add("block_size", mask.blocks.block_size);
  if (a.bias.exists()) text += " bias";
  if (a.slopes.exists()) text += " slopes";
  if (a.table.exists()) add("table", a.table.extent(1));
  if (a.sink.exists()) text += " sink";
  if (a.key_table.exists()) add("key_table", a.key_table.extent(1));
  if (a.query_table.exists()) add("query_table", a.query_table.extent(1));
  if (mask.softcap > 0) text += " softcap";
  if (mask.dropout.p > 0) text += " dropout";
  return text;
}

Arrays random_arrays(const Precision& precision, const Shape& s, Generator& generator) {
  const bool is_double = same(precision.dtype, kFloat64);
  const attn_dtype out_dtype = is_double ? kFloat64 : kPrecisions[below(generator, 3)].dtype;
  return Arrays(precision.dtype, one_in(generator, 3) ? out_dtype : precision.dtype, s,
                generator());
}

// At times some gradients are not wanted.
void leave_out_gradients(attn_attention_backward_args& args, Generator& generator) {
  if (!one_in(generator, 4)) return;
  for (const attn_tensor** gradient :
       {&args.grad_query, &args.grad_key, &args.grad_value, &args.grad_bias, &args.grad_slopes,
        &args.grad_table, &args.grad_sink, &args.grad_position_query, &args.grad_key_table,
        &args.grad_position_key, &args.grad_query_table}) {
    if (one_in(generator, 2)) *gradient = nullptr;
  }
}

// What no kernel for GPUs does.
bool is_refused(const Precision& precision, const Arrays& a) {
  if (Array::device_type == ATTN_DEVICE_CPU) return false;
  const bool is_too_wide = a.query.extent(3) > 256 || a.value.extent(3) > 256;
  return !is_served(precision) || is_too_wide;
}

void check_results(const std::string& context, const Calls& calls, const SpoiltKeys& spoilt,
                   double tolerance, const NaiveForward& forward, const NaiveBackward& backward) {
  const Arrays& a = calls.arrays;
  const attn_attention_backward_args& wanted = calls.backward;
  const int64_t Mq = a.query.extent(1), Hq = a.query.extent(2), Kv = a.value.extent(3);
  // Gradients are differences of dot products over Kv, whose errors do not cancel.
  const double grad_tolerance = tolerance * (2.0 + 0.5 * std::sqrt(1.0 * Kv));
  const auto is_clean_row = [&](int64_t row) {  // of [B, Mq, Hq]
    return !spoilt.are_seen_by(row / (Hq * Mq), row % Hq, row / Hq % Mq);
  };
  check_close(context, "out", a.out, forward.out, tolerance,
              [&](int64_t place) { return is_clean_row(place / Kv); });
  if (wanted.grad_query) {
    check_close(context, "grad_query", a.grad_query, backward.grad_query, grad_tolerance,
                [&](int64_t place) { return is_clean_row(place / a.query.extent(3)); });
  }
  if (spoilt.has_seen()) return;
  check_close(context, "lse", a.lse, forward.lse, tolerance);
  if (wanted.grad_key) {
    check_close(context, "grad_key", a.grad_key, backward.grad_key, grad_tolerance);
  }
  if (wanted.grad_value) {
    check_close(context, "grad_value", a.grad_value, backward.grad_value, grad_tolerance);
  }
  if (wanted.grad_bias) {
    check_close(context, "grad_bias", a.grad_bias, backward.grad_bias, grad_tolerance);
  }
  if (wanted.grad_slopes) {
    check_sums(context, "grad_slopes", a.grad_slopes, backward.grad_slopes, backward.slopes_terms,
               grad_tolerance);
  }
  if (wanted.grad_table) {
    check_sums(context, "grad_table", a.grad_table, backward.grad_table, backward.table_terms,
               grad_tolerance);
  }
  if (wanted.grad_sink) {
    check_sums(context, "grad_sink", a.grad_sink, backward.grad_sink, backward.sink_terms,
               grad_tolerance);
  }
  if (wanted.grad_position_query) {
    check_close(context, "grad_position_query", a.grad_position_query, backward.grad_position_query,
                grad_tolerance);
  }
  if (wanted.grad_position_key) {
    check_close(context, "grad_position_key", a.grad_position_key, backward.grad_position_key,
                grad_tolerance);
  }
  if (wanted.grad_key_table) {
    check_sums(context, "grad_key_table", a.grad_key_table, backward.grad_key_table,
               backward.key_table_terms, grad_tolerance);
  }
  if (wanted.grad_query_table) {
    check_sums(context, "grad_query_table", a.grad_query_table, backward.grad_query_table,
               backward.query_table_terms, grad_tolerance);
  }
}

void run_problem(unsigned seed) {
  Generator generator(seed);
  const Precision& precision = kPrecisions[below(generator, 4)];
  const Shape shape = random_shape(generator);
  Arrays arrays = random_arrays(precision, shape, generator);
  const attn_mask mask = add_random_mask(arrays, shape, precision.dtype, generator);
  const std::string context = describe(seed, precision, shape, arrays, mask);
  Calls calls(std::move(arrays));
  calls.mask = mask;
  calls.fill_mask();
  calls.exec.num_threads = 1 + static_cast<int32_t>(below(generator, 3));
  leave_out_gradients(calls.backward, generator);
  if (is_refused(precision, calls.arrays)) {
    CHECK_IN(context.c_str(), calls.run_forward() == ATTN_ERROR_UNSUPPORTED);
    CHECK_IN(context.c_str(), calls.run_backward() == ATTN_ERROR_UNSUPPORTED);
    return;
  }

  Arrays& a = calls.arrays;
  const NaiveForward forward = naive_forward(a, calls.mask);
  const NaiveBackward backward = naive_backward(a, calls.mask);
  // The plain loops are done: from here on keys are spoilt for the library alone.
  const SpoiltKeys spoilt(a, calls.mask, generator);
  if (one_in(generator, 2)) spoilt.spoil(a.key, generator);
  spoilt.spoil(a.value, generator);
  if (a.position_key.exists()) spoilt.spoil_features(a.position_key, generator);

  run_both(calls);
  // The backward reads the forward's output, rounded as it is.
  const double tolerance = std::max(precision.tolerance, tolerance_of(a.out.dtype()));
  check_results(context, calls, spoilt, tolerance, forward, backward);
  if (one_in(generator, 3)) check_deterministic(context, calls);
}

}  // namespace

int main(int argc, char** argv) {
  const int problems = argc > 1 ? std::atoi(argv[1]) : 100;
  const unsigned first_seed = argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 1;
  if (!runs_forced_isa()) return check::kSkipped;
  for (int i = 0; i < problems; ++i) run_problem(first_seed + i);
  return check::outcome();
}
