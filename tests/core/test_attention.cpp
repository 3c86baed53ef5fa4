// Forward and backward against plain loops, over dtypes, masks, widths and head counts, under the
// kernels that ATTN_CPU_ISA names.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>

#include "calls.h"
#include "check.h"
#include "close.h"
#include "forced_isa.h"
#include "naive_attention.h"

namespace {

constexpr Shape kShapes[] = {
    {},
    {.B = 1, .Mq = 1, .Mkv = 1, .Hq = 1, .Hkv = 1, .K = 1, .Kv = 1},
    {.B = 1, .Mq = 1, .Mkv = 300, .Hq = 4, .Hkv = 1, .K = 64, .Kv = 64},
    {.B = 2, .Mq = 37, .Mkv = 51, .Hq = 3, .Hkv = 3, .K = 31, .Kv = 40},
    {.B = 1, .Mq = 100, .Mkv = 270, .Hq = 1, .Hkv = 1, .K = 18, .Kv = 33},
};

// A name and what it does to a mask or to a problem's arrays.
struct MaskCase {
  const char* name;
  attn_band band = {ATTN_UNBOUNDED, ATTN_UNBOUNDED, 0, 0};
  enum { kNone, kAdditive, kAdditiveRow, kKeep, kKeepKeys } bias = kNone;
  double p = 0.0;
};

constexpr MaskCase kMasks[] = {
    {.name = "full"},
    {.name = "causal", .band = {ATTN_UNBOUNDED, 0, ATTN_ANCHOR_TOP_LEFT, 0}},
    {.name = "causal from bottom right", .band = {ATTN_UNBOUNDED, 0, ATTN_ANCHOR_BOTTOM_RIGHT, 0}},
    {.name = "window", .band = {3, 2, ATTN_ANCHOR_BOTTOM_RIGHT, 0}},
    {.name = "window off the keys", .band = {-400, 500, ATTN_ANCHOR_TOP_LEFT, 0}},
    {.name = "additive bias", .bias = MaskCase::kAdditive},
    {.name = "additive bias broadcast over rows", .bias = MaskCase::kAdditiveRow},
    {.name = "keep-mask", .bias = MaskCase::kKeep},
    {.name = "key padding", .bias = MaskCase::kKeepKeys},
    {.name = "dropout", .p = 0.3},
    {.name = "all at once",
     .band = {40, 7, ATTN_ANCHOR_BOTTOM_RIGHT, 0},
     .bias = MaskCase::kAdditive,
     .p = 0.5},
};

Arrays make_arrays(const Precision& precision, const Shape& s, const MaskCase& mask) {
  Arrays arrays(precision.dtype, precision.dtype, s, 7);
  switch (mask.bias) {
    case MaskCase::kNone: break;
    case MaskCase::kAdditive: arrays.add_bias(precision.dtype, {s.B, s.Hq, s.Mq, s.Mkv}, 11); break;
    case MaskCase::kAdditiveRow: arrays.add_bias(kFloat32, {1, s.Hq, 1, s.Mkv}, 12); break;
    case MaskCase::kKeep: arrays.add_bias(kBool, {s.B, s.Hq, s.Mq, s.Mkv}, 13); break;
    case MaskCase::kKeepKeys: arrays.add_bias(kBool, {s.B, 1, 1, s.Mkv}, 14); break;
  }
  return arrays;
}

// One and three threads must give the same bytes; then those are compared with the plain loops.
void run_case(const Precision& precision, const Shape& shape, const MaskCase& mask_case) {
  char context[200];
  std::snprintf(context, sizeof(context), "%s, %s, Mq %lld, Mkv %lld, K %lld", precision.name,
                mask_case.name, static_cast<long long>(shape.Mq), static_cast<long long>(shape.Mkv),
                static_cast<long long>(shape.K));
  Calls alone(make_arrays(precision, shape, mask_case));
  Calls threaded(make_arrays(precision, shape, mask_case));
  threaded.exec.num_threads = 3;
  for (Calls* calls : {&alone, &threaded}) {
    calls->mask.band = mask_case.band;
    calls->mask.dropout = {.p = mask_case.p, .seed = 0x123456789ABCDEF0, .offset = 5};
    CHECK_IN(context, calls->run_forward() == ATTN_OK);
    CHECK_IN(context, calls->run_backward() == ATTN_OK);
    CHECK_IN(calls->error.message, calls->error.message[0] == '\0');
  }
  for (const auto& list : {&Calls::forward_outputs, &Calls::backward_outputs}) {
    const std::vector<Array*> ours = (alone.*list)(), theirs = (threaded.*list)();
    for (size_t i = 0; i < ours.size(); ++i) {
      CHECK_IN(context, ours[i]->bytes() == theirs[i]->bytes());
    }
  }

  const Arrays& got = alone.arrays;
  const NaiveForward forward = naive_forward(got, alone.mask);
  const NaiveBackward backward = naive_backward(got, alone.mask);
  const double tolerance = precision.tolerance;
  check_close(context, "out", got.out, forward.out, tolerance);
  check_close(context, "lse", got.lse, forward.lse, tolerance);
  check_close(context, "grad_query", got.grad_query, backward.grad_query, 2 * tolerance);
  check_close(context, "grad_key", got.grad_key, backward.grad_key, 2 * tolerance);
  check_close(context, "grad_value", got.grad_value, backward.grad_value, 2 * tolerance);
  check_close(context, "grad_bias", got.grad_bias, backward.grad_bias, 2 * tolerance);
}

// Extents of 0: nothing to write, or a sum over nothing.
void run_empty_cases() {
  for (const Shape& shape : {Shape{.B = 0}, Shape{.Mq = 0}, Shape{.Mkv = 0}, Shape{.Hq = 0}}) {
    Calls calls(Arrays(kFloat32, kFloat32, shape, 3));
    mark_unwritten(calls.forward_outputs());
    mark_unwritten(calls.backward_outputs());
    CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
    CHECK_IN(calls.error.message, calls.run_backward() == ATTN_OK);
    for (Array* zeros : {&calls.arrays.out, &calls.arrays.grad_query, &calls.arrays.grad_key,
                         &calls.arrays.grad_value}) {
      for (int64_t i = 0; i < zeros->size(); ++i) CHECK(zeros->get(i) == 0.0);
    }
    for (int64_t i = 0; i < calls.arrays.lse.size(); ++i) {
      CHECK(calls.arrays.lse.get(i) == -HUGE_VAL);
    }
  }
}

// Positions need no memory that grows with Mq x Mkv: twice the rows, at most twice the bytes.
void run_position_workspaces() {
  size_t forward[2], backward[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t rows = 2048 << i;
    Arrays arrays(kFloat32, kFloat32, {1, rows, rows, 1, 1, 16, 16}, 3);
    arrays.add_query_positions(kFloat32, 16, 2 * rows - 1, 1, 4);
    arrays.add_key_positions(kFloat32, 16, 2 * rows - 1, 1, 6);
    Calls calls(std::move(arrays));
    CHECK(attn_attention_forward_workspace(&calls.forward, &forward[i], &calls.error) == ATTN_OK);
    CHECK(attn_attention_backward_workspace(&calls.backward, &backward[i], &calls.error) ==
          ATTN_OK);
  }
  CHECK(forward[1] <= 2 * forward[0] && backward[1] <= 2 * backward[0]);
}

// Any of the narrow dtypes may be the output's.
void run_output_dtypes() {
  for (const attn_dtype out_dtype : {kFloat32, kBFloat16, kFloat16}) {
    Calls calls(Arrays(kBFloat16, out_dtype, {}, 5));
    CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
    CHECK_IN(calls.error.message, calls.run_backward() == ATTN_OK);
    const NaiveForward expected = naive_forward(calls.arrays, calls.mask);
    check_close("bfloat16 inputs, other output", "out", calls.arrays.out, expected.out, 1.5e-2);
  }
}

// Scores that float32 rounds by more than softmax tells apart: the largest takes all, and its value
// all gradients.
void run_large_scores(int64_t Mq, double scale, double sign) {
  const Shape shape{.B = 1, .Mq = Mq, .Mkv = 128, .Hq = 1, .Hkv = 1, .K = 1, .Kv = 1};
  Calls calls(Arrays(kFloat32, kFloat32, shape, 3));
  Arrays& a = calls.arrays;
  for (int64_t i = 0; i < Mq; ++i) a.query.set(i, sign);
  for (int64_t j = 0; j < shape.Mkv; ++j) {
    const double key = j == 7 ? 3.0 : j == 11 ? 65.0 : static_cast<double>(j % 59 + 5);
    a.key.set(j, key);
    a.value.set(j, key);
  }
  calls.forward.scale = calls.backward.scale = scale;
  CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
  const double chosen = sign > 0 ? 65.0 : 3.0, lse = sign * chosen * scale;
  for (int64_t i = 0; i < Mq; ++i) {
    CHECK(std::fabs(a.out.get(i) - chosen) <= 1e-5 * chosen);
    CHECK(std::fabs(a.lse.get(i) - lse) <= 1e-6 * std::fabs(lse));
  }
  for (int64_t i = 0; i < Mq; ++i) {
    a.grad_out.set(i, 1.0);
    a.grad_lse.set(i, 0.0);
  }
  CHECK_IN(calls.error.message, calls.run_backward() == ATTN_OK);
  for (int64_t j = 0; j < shape.Mkv; ++j) {
    const double gradient = a.key.get(j) == chosen ? static_cast<double>(Mq) : 0.0;
    CHECK(std::fabs(a.grad_value.get(j) - gradient) <= 1e-5 * static_cast<double>(Mq));
  }
}

}  // namespace

int main() {
  if (!runs_forced_isa()) return check::kSkipped;
  for (const Precision& precision : kPrecisions) {
    if (!is_served(precision)) continue;
    for (const Shape& shape : kShapes) {
      for (const MaskCase& mask : kMasks) run_case(precision, shape, mask);
    }
  }
  run_empty_cases();
  if (Array::device_type == ATTN_DEVICE_CPU) run_position_workspaces();
  run_output_dtypes();
  for (const int64_t Mq : {1, 40}) {
    for (const double scale : {1e5, 3e8, 1e12}) {
      for (const double sign : {1.0, -1.0}) run_large_scores(Mq, scale, sign);
    }
  }
  return check::outcome();
}
