// Steps over ring buffers against plain loops over all that a stream has seen, under the kernels
// that ATTN_CPU_ISA names.
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "close.h"
#include "forced_isa.h"
#include "step_calls.h"

namespace {

struct Case {
  const char* name;
  StepShape shape;
  bool padding = false, active = false, hands_query_out = false;
  std::vector<int64_t> bias = {};  // its shape
  attn_dtype bias_dtype = kFloat32;
  bool is_for_cpu = false;  // on an emulated GPU it takes long and finds nothing more
};

const Case kCases[] = {
    {.name = "full rings", .shape = {.R = 4}},
    {.name = "rings longer than the window", .shape = {}},
    {.name = "one slot", .shape = {.R = 1, .L = 1}},
    {.name = "two slots, one seen", .shape = {.R = 2, .L = 1}},
    {.name = "padding", .shape = {.R = 4}, .padding = true},
    {.name = "active streams", .shape = {.R = 4}, .active = true},
    {.name = "bias of each head", .shape = {}, .bias = {3, 4, 1, 4}},
    {.name = "one bias", .shape = {.R = 4}, .bias = {1, 1, 1, 4}},
    {.name = "a keep-mask", .shape = {}, .bias = {1, 4, 1, 4}, .bias_dtype = kBool},
    {.name = "a query that waits", .shape = {.R = 4, .D = 1}, .is_for_cpu = true},
    {.name = "more queries than slots", .shape = {.R = 2, .L = 2, .K = 5, .D = 3}, .active = true},
    {.name = "everything",
     .shape = {.B = 2, .R = 37, .L = 33, .Hq = 6, .Hkv = 3, .K = 20, .Kv = 33, .D = 7},
     .padding = true,
     .active = true,
     .hands_query_out = true,
     .bias = {2, 6, 1, 33}},
    {.name = "as many heads", .shape = {.B = 1, .R = 70, .L = 70, .Hq = 3, .Hkv = 3, .K = 16}},
    {.name = "pairs of heads",
     .shape = {.B = 1, .R = 69, .L = 69, .Hq = 6, .Hkv = 6, .K = 32},
     .is_for_cpu = true},
    {.name = "a vector of heads",
     .shape = {.B = 1, .R = 69, .L = 69, .Hq = 16, .Hkv = 16, .K = 32},
     .is_for_cpu = true},
};

struct Row {
  std::vector<double> key, value;
  bool is_hidden = false;
};

// A stream as one would define it: all its steps, in order. Its queries begin with the D that
// waited before the first step, so that query p attends at step p.
struct History {
  std::vector<Row> rows;
  std::vector<std::vector<double>> queries;
};

std::vector<double> values_of(const Array& array, int64_t b, int64_t slot = 0) {
  const int64_t count = array.extent(2) * array.extent(3);
  const int64_t begin = (b * array.extent(1) + slot) * count;
  std::vector<double> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(array.get(begin + i));
  return values;
}

double bias_of(const StepCall& call, int64_t b, int64_t h, int64_t place) {
  const Array& bias = call.arrays.bias;
  if (!bias.exists()) return 0.0;
  const double value = bias.get(bias.at(b, h, 0, place));
  if (!same(bias.dtype(), kBool)) return value;
  return value != 0.0 ? 0.0 : -HUGE_VAL;
}

struct NaiveStep {
  std::vector<double> out, lse;
};

// One head's query over the last steps of its stream, by the definition.
void attend(const StepCall& call, const StepShape& s, const History& history, int64_t b, int64_t h,
            NaiveStep& naive) {
  const int64_t key_head = h / (s.Hq / s.Hkv), seen = static_cast<int64_t>(history.rows.size());
  std::vector<double> weighted(s.Kv);
  double sum = 0.0;
  for (int64_t p = std::max<int64_t>(0, seen - s.L); p < seen; ++p) {
    const Row& row = history.rows[p];
    if (row.is_hidden) continue;
    double score = 0.0;
    for (int64_t k = 0; k < s.K; ++k) {
      score += history.queries[seen - 1][h * s.K + k] * row.key[key_head * s.K + k];
    }
    score = score / std::sqrt(static_cast<double>(s.K)) + bias_of(call, b, h, s.L - seen + p);
    sum += std::exp(score);
    for (int64_t v = 0; v < s.Kv; ++v) {
      weighted[v] += std::exp(score) * row.value[key_head * s.Kv + v];
    }
  }
  naive.lse.push_back(std::log(sum));
  for (const double value : weighted) naive.out.push_back(sum == 0.0 ? 0.0 : value / sum);
}

NaiveStep take_naively(const StepCall& call, const StepShape& s, std::vector<History>& streams) {
  NaiveStep naive;
  for (int64_t b = 0; b < s.B; ++b) {
    const StepArrays& arrays = call.arrays;
    const bool is_active = !arrays.active.exists() || arrays.active.get(b) != 0.0;
    if (is_active) {
      streams[b].queries.push_back(values_of(arrays.query, b));
      streams[b].rows.push_back(
          {.key = values_of(arrays.key, b),
           .value = values_of(arrays.value, b),
           .is_hidden = arrays.padding.exists() && arrays.padding.get(b) != 0.0});
    }
    const History none;
    for (int64_t h = 0; h < s.Hq; ++h) {
      attend(call, s, is_active ? streams[b] : none, b, h, naive);
    }
  }
  return naive;
}

// What the rings must hold: the last R steps of each stream in their slots, garbage elsewhere.
void check_rings(const char* context, const StepCall& call, const StepShape& s,
                 const std::vector<History>& streams) {
  const StepArrays& arrays = call.arrays;
  for (int64_t b = 0; b < s.B; ++b) {
    const std::vector<Row>& rows = streams[b].rows;
    const int64_t seen = static_cast<int64_t>(rows.size());
    CHECK_IN(context, arrays.position.get(b) == static_cast<double>(seen));
    for (int64_t age = 0; age < s.R; ++age) {
      const int64_t p = seen - 1 - age;
      const int64_t slot = (p % s.R + s.R) % s.R;
      for (int64_t h = 0; h < s.Hkv; ++h) {
        const double key = arrays.key_ring.get(arrays.key_ring.at(b, slot, h, s.K - 1));
        const double value = arrays.value_ring.get(arrays.value_ring.at(b, slot, h, 0));
        if (p < 0) {
          CHECK_IN(context, std::isnan(key) && std::isnan(value));
        } else {
          CHECK_IN(context, key == rows[p].key[(h + 1) * s.K - 1]);
          CHECK_IN(context, value == rows[p].value[h * s.Kv]);
        }
      }
      if (p < 0 || !arrays.padding_ring.exists()) continue;
      const bool is_hidden = arrays.padding_ring.get(b * s.R + slot) != 0.0;
      CHECK_IN(context, is_hidden == rows[p].is_hidden);
    }
  }
}

// What waits must be the last D queries of each stream, in their slots; what was handed out, the
// query that attended, or that waits longest where none did.
void check_queries(const char* context, const StepCall& call, const StepShape& s,
                   const std::vector<History>& streams) {
  const StepArrays& arrays = call.arrays;
  for (int64_t b = 0; b < s.B; ++b) {
    const int64_t seen = static_cast<int64_t>(streams[b].rows.size());
    for (int64_t p = seen; p < seen + s.D; ++p) {
      CHECK_IN(context, values_of(arrays.query_ring, b, p % s.D) == streams[b].queries[p]);
    }
    if (!arrays.attending_query.exists()) continue;
    const bool is_active = !arrays.active.exists() || arrays.active.get(b) != 0.0;
    CHECK_IN(context, values_of(arrays.attending_query, b) ==
                          streams[b].queries[is_active ? seen - 1 : seen]);
  }
}

StepArrays make_arrays(const Precision& precision, const Case& c, const StepShape& shape) {
  StepArrays arrays(precision.dtype, shape);
  if (c.padding) arrays.padding = Array(kBool, {shape.B});
  if (c.padding) arrays.padding_ring = Array(kBool, {shape.B, shape.R});
  if (c.active) arrays.active = Array(kBool, {shape.B});
  if (c.hands_query_out) arrays.attending_query = Array(precision.dtype, arrays.query.shape());
  if (c.bias.empty()) return arrays;
  std::vector<int64_t> bias = c.bias;
  if (bias[0] > 1) bias[0] = shape.B;
  arrays.bias = Array(c.bias_dtype, bias);
  return arrays;
}

void draw(Array& array, std::mt19937& generator) {
  if (!array.exists()) return;
  const Array drawn = Array::random(array.dtype(), array.shape(), generator());
  for (int64_t i = 0; i < array.size(); ++i) array.set(i, drawn.get(i));
}

// What waits before the first step.
void draw_waiting(StepArrays& arrays, std::mt19937& generator, std::vector<History>& streams) {
  draw(arrays.query_ring, generator);
  if (!arrays.query_ring.exists()) return;
  for (size_t b = 0; b < streams.size(); ++b) {
    for (int64_t slot = 0; slot < arrays.query_ring.extent(1); ++slot) {
      streams[b].queries.push_back(values_of(arrays.query_ring, static_cast<int64_t>(b), slot));
    }
  }
}

void draw_inputs(StepArrays& arrays, std::mt19937& generator) {
  for (Array* array :
       {&arrays.query, &arrays.key, &arrays.value, &arrays.bias, &arrays.padding, &arrays.active}) {
    draw(*array, generator);
  }
}

// Copies stream b of an array to that of a call of the stream alone.
void copy_stream(Array& alone, const Array& all, int64_t b) {
  if (!alone.exists()) return;
  const int64_t begin = all.extent(0) == 1 ? 0 : b * alone.size();
  for (int64_t i = 0; i < alone.size(); ++i) alone.set(i, all.get(begin + i));
}

void copy_inputs(StepArrays& alone, const StepArrays& all, int64_t b) {
  copy_stream(alone.query, all.query, b);
  copy_stream(alone.key, all.key, b);
  copy_stream(alone.value, all.value, b);
  copy_stream(alone.bias, all.bias, b);
  copy_stream(alone.padding, all.padding, b);
  copy_stream(alone.active, all.active, b);
}

bool are_bits_of_stream(Array& alone, Array& all, int64_t b) {
  const size_t bytes = alone.bytes().size();
  return std::memcmp(alone.bytes().data(), all.bytes().data() + b * bytes, bytes) == 0;
}

// Streams together, with more threads and the last one alone: the same bits, and near plain loops.
void run_case(const Precision& precision, const Case& c) {
  const StepShape& shape = c.shape;
  StepShape alone_shape = shape;
  alone_shape.B = 1;
  StepCall call(make_arrays(precision, c, shape), shape.L);
  StepCall threaded(make_arrays(precision, c, shape), shape.L);
  StepCall alone(make_arrays(precision, c, alone_shape), shape.L);
  threaded.exec.num_threads = 3;
  std::vector<History> streams(shape.B);
  std::mt19937 generator(7), same_generator(7);
  draw_waiting(call.arrays, generator, streams);
  draw(threaded.arrays.query_ring, same_generator);
  copy_stream(alone.arrays.query_ring, call.arrays.query_ring, shape.B - 1);
  for (int64_t step = 0; step < 2 * shape.R + 3; ++step) {
    char context[200];
    std::snprintf(context, sizeof(context), "%s, %s, step %lld", precision.name, c.name,
                  static_cast<long long>(step));
    draw_inputs(call.arrays, generator);
    draw_inputs(threaded.arrays, same_generator);
    copy_inputs(alone.arrays, call.arrays, shape.B - 1);
    for (StepCall* each : {&call, &threaded, &alone}) {
      CHECK_IN(each->error.message, each->run() == ATTN_OK);
    }
    const NaiveStep naive = take_naively(call, shape, streams);
    check_close(context, "out", call.arrays.out, naive.out, precision.tolerance);
    check_close(context, "lse", call.arrays.lse, naive.lse, tolerance_of(call.arrays.lse.dtype()));
    check_rings(context, call, shape, streams);
    check_queries(context, call, shape, streams);
    CHECK_IN(context, call.arrays.out.bytes() == threaded.arrays.out.bytes());
    CHECK_IN(context, are_bits_of_stream(alone.arrays.out, call.arrays.out, shape.B - 1));
    CHECK_IN(context, are_bits_of_stream(alone.arrays.lse, call.arrays.lse, shape.B - 1));
  }
}

// Rows and rings with the axes in another order in memory, and flags that lie apart.
void run_strides() {
  const StepShape s{.R = 4, .K = 8, .Kv = 8, .D = 2};
  const Case c{.name = "strides", .shape = s, .padding = true};
  StepCall plain(make_arrays(kPrecisions[0], c, s), s.L);
  StepArrays turned_arrays = make_arrays(kPrecisions[0], c, s);
  turned_arrays.padding_ring = Array(kBool, {s.R, s.B});
  StepCall turned(std::move(turned_arrays), s.L);
  for (EditableTensor* ring : {&turned.key_ring, &turned.value_ring}) {  // [B, Hkv, R, K] in memory
    ring->strides[1] = s.K;
    ring->strides[2] = s.R * s.K;
  }
  turned.query_ring.strides[1] = s.K;
  turned.query_ring.strides[2] = s.D * s.K;
  std::swap(turned.padding_ring.shape[0], turned.padding_ring.shape[1]);
  std::swap(turned.padding_ring.strides[0], turned.padding_ring.strides[1]);
  std::mt19937 generator(7), same_generator(7);
  for (int step = 0; step < 11; ++step) {
    draw_inputs(plain.arrays, generator);
    draw_inputs(turned.arrays, same_generator);
    CHECK_IN(plain.error.message, plain.run() == ATTN_OK);
    CHECK_IN(turned.error.message, turned.run() == ATTN_OK);
    CHECK(plain.arrays.out.bytes() == turned.arrays.out.bytes());
  }
}

void run_empty_cases() {
  for (const StepShape& shape : {StepShape{.B = 0}, StepShape{.Hq = 0}, StepShape{.B = 0, .D = 2},
                                 StepShape{.Hq = 0, .D = 2}}) {
    StepArrays arrays(kFloat32, shape);
    arrays.bias = Array(kFloat32, {1, shape.Hq, 1, shape.L});
    StepCall call(std::move(arrays), shape.L);
    call.args.scale = 0.5;
    call.args.lse = nullptr;
    CHECK_IN(call.error.message, call.run() == ATTN_OK);
    if (shape.B > 0) CHECK(call.arrays.position.get(0) == 1.0);
  }
}

}  // namespace

int main() {
  if (!runs_forced_isa()) return check::kSkipped;
  for (const Precision& precision : kPrecisions) {
    if (!is_served(precision)) continue;
    for (const Case& c : kCases) {
      if (!c.is_for_cpu || Array::device_type == ATTN_DEVICE_CPU) run_case(precision, c);
    }
  }
  run_strides();
  run_empty_cases();
  return check::outcome();
}
