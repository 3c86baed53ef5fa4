// Merging against plain loops, over dtypes, shapes and numbers of chunks, under the kernels that
// ATTN_CPU_ISA names.
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "check.h"
#include "close.h"
#include "forced_isa.h"
#include "merge_calls.h"

namespace {

constexpr MergeShape kShapes[] = {
    {},
    {.chunks = 1, .B = 1, .M = 1, .H = 1, .Kv = 1},
    {.chunks = 8, .B = 1, .M = 37, .H = 2, .Kv = 64},
    {.chunks = 2, .B = 2, .M = 3, .H = 40, .Kv = 100},
    {.chunks = 19, .B = 1, .M = 4, .H = 3, .Kv = 1030},
    {.chunks = 1024, .B = 1, .M = 18, .H = 2, .Kv = 7},
};

// Empties the first chunk for every third row, and every chunk for the last row: lse -infinity, and
// an out of NaN that must reach nothing.
void empty_some_rows(MergeCalls& calls) {
  const MergeShape& s = calls.shape;
  for (int64_t row = 0; row < s.B * s.M * s.H; ++row) {
    const int64_t b = row / s.H / s.M, m = row / s.H % s.M, h = row % s.H;
    const bool is_last = row + 1 == s.B * s.M * s.H;
    for (size_t c = 0; c < calls.chunk_outs.arrays.size(); ++c) {
      if (!is_last && (c > 0 || row % 3 != 1)) continue;
      Array& lse = calls.chunk_lses.arrays[c];
      lse.set((b * s.H + h) * s.M + m, -HUGE_VAL);
      Array& out = calls.chunk_outs.arrays[c];
      for (int64_t v = 0; v < s.Kv; ++v) out.set(out.at(b, m, h, v), NAN);
    }
  }
}

struct NaiveMerge {
  std::vector<double> out, lse;
  std::vector<std::vector<double>> grad_chunk_outs, grad_chunk_lses;
};

// One row of the definition, and its derivative.
void merge_naive_row(MergeCalls& calls, NaiveMerge& naive, int64_t b, int64_t m, int64_t h) {
  const MergeShape& s = calls.shape;
  const int64_t lse_place = (b * s.H + h) * s.M + m;
  double sum = 0.0;
  for (const Array& lse : calls.chunk_lses.arrays) sum += std::exp(lse.get(lse_place));
  naive.lse[lse_place] = std::log(sum);
  const auto weight = [&](size_t c) {
    return sum == 0.0 ? 0.0 : std::exp(calls.chunk_lses.arrays[c].get(lse_place)) / sum;
  };
  double mean = 0.0;
  std::vector<double> products(calls.chunk_outs.arrays.size());
  for (size_t c = 0; c < products.size(); ++c) {
    if (weight(c) == 0.0) continue;
    for (int64_t v = 0; v < s.Kv; ++v) {
      const int64_t place = calls.out().at(b, m, h, v);
      const double x = calls.chunk_outs.arrays[c].get(place);
      const double gradient = calls.grad_out().get(place);
      naive.out[place] += weight(c) * x;
      naive.grad_chunk_outs[c][place] = weight(c) * gradient;
      products[c] += gradient * x;
    }
    mean += weight(c) * products[c];
  }
  for (size_t c = 0; c < products.size(); ++c) {
    naive.grad_chunk_lses[c][lse_place] =
        weight(c) * (products[c] - mean + calls.grad_lse().get(lse_place));
  }
}

NaiveMerge merge_naively(MergeCalls& calls) {
  const MergeShape& s = calls.shape;
  const size_t chunks = calls.chunk_outs.arrays.size();
  const std::vector<double> no_out(calls.out().size()), no_lse(calls.lse().size());
  NaiveMerge naive{.out = no_out, .lse = no_lse, .grad_chunk_outs = {}, .grad_chunk_lses = {}};
  naive.grad_chunk_outs.assign(chunks, no_out);
  naive.grad_chunk_lses.assign(chunks, no_lse);
  for (int64_t row = 0; row < s.B * s.M * s.H; ++row) {
    merge_naive_row(calls, naive, row / s.H / s.M, row / s.H % s.M, row % s.H);
  }
  return naive;
}

void check_against_naive(const std::string& context, MergeCalls& calls, double tolerance) {
  const NaiveMerge naive = merge_naively(calls);
  check_close(context, "out", calls.out(), naive.out, tolerance);
  check_close(context, "lse", calls.lse(), naive.lse, tolerance_of(calls.lse().dtype()));
  for (size_t c = 0; c < naive.grad_chunk_outs.size(); ++c) {
    check_close(context, "grad_chunk_out", calls.grad_chunk_outs.arrays[c],
                naive.grad_chunk_outs[c], tolerance);
    check_close(context, "grad_chunk_lse", calls.grad_chunk_lses.arrays[c],
                naive.grad_chunk_lses[c], 4 * tolerance);
  }
}

// One and three threads must give the same bytes; then those are compared with the plain loops.
void run_case(const Precision& precision, const MergeShape& shape) {
  char context[200];
  std::snprintf(context, sizeof(context), "%s, %lld chunks, M %lld, H %lld, Kv %lld",
                precision.name, static_cast<long long>(shape.chunks),
                static_cast<long long>(shape.M), static_cast<long long>(shape.H),
                static_cast<long long>(shape.Kv));
  MergeCalls alone(precision.dtype, precision.dtype, shape);
  MergeCalls threaded(precision.dtype, precision.dtype, shape);
  threaded.exec.num_threads = 3;
  for (MergeCalls* calls : {&alone, &threaded}) {
    empty_some_rows(*calls);
    CHECK_IN(calls->error.message, calls->run_forward() == ATTN_OK);
    CHECK_IN(calls->error.message, calls->run_backward() == ATTN_OK);
  }
  for (const auto& list : {&MergeCalls::forward_outputs, &MergeCalls::backward_outputs}) {
    const std::vector<Array*> ours = (alone.*list)(), theirs = (threaded.*list)();
    for (size_t i = 0; i < ours.size(); ++i) {
      CHECK_IN(context, ours[i]->bytes() == theirs[i]->bytes());
    }
  }
  check_against_naive(context, alone, precision.tolerance);
}

// Any of the narrow dtypes may be the output's.
void run_output_dtypes() {
  for (const attn_dtype out_dtype : {kFloat32, kBFloat16, kFloat16}) {
    MergeCalls calls(kBFloat16, out_dtype, {});
    CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
    CHECK_IN(calls.error.message, calls.run_backward() == ATTN_OK);
    check_against_naive("bfloat16 chunks, other output", calls, 1.5e-2);
  }
}

// Only what is wanted is written; a row depends on nothing but its own chunks.
void run_partial_gradients() {
  MergeCalls all(kFloat32, kFloat32, {}), some(kFloat32, kFloat32, {});
  some.forward.lse = nullptr;
  some.grad_chunk_outs.pointers[0] = nullptr;
  some.grad_chunk_lses.pointers[2] = nullptr;
  mark_unwritten(some.forward_outputs());
  mark_unwritten(some.backward_outputs());
  for (MergeCalls* calls : {&all, &some}) {
    CHECK_IN(calls->error.message, calls->run_forward() == ATTN_OK);
    CHECK_IN(calls->error.message, calls->run_backward() == ATTN_OK);
  }
  CHECK(is_unwritten(
      {&some.lse(), &some.grad_chunk_outs.arrays[0], &some.grad_chunk_lses.arrays[2]}));
  CHECK(some.out().bytes() == all.out().bytes());
  CHECK(some.grad_chunk_outs.arrays[1].bytes() == all.grad_chunk_outs.arrays[1].bytes());
  CHECK(some.grad_chunk_lses.arrays[0].bytes() == all.grad_chunk_lses.arrays[0].bytes());

  some.backward.grad_chunk_lses = nullptr;
  mark_unwritten(some.backward_outputs());
  CHECK(some.run_backward() == ATTN_OK);
  CHECK(some.grad_chunk_outs.arrays[2].bytes() == all.grad_chunk_outs.arrays[2].bytes());
  CHECK(is_unwritten(some.grad_chunk_lses.all()));
}

// The same numbers with the axes in another order in memory.
void run_strides() {
  MergeCalls plain(kFloat32, kFloat32, {}), turned(kFloat32, kFloat32, {});
  const MergeShape& s = plain.shape;
  const int64_t outs[] = {s.H * s.M * s.Kv, s.Kv, s.M * s.Kv, 1};  // [B, H, M, Kv] in memory
  const int64_t lses[] = {s.M * s.H, 1, s.H};                      // [B, M, H] in memory
  const auto turn = [&](ChunkList& list, size_t index) {
    EditableTensor& tensor = list.tensors[index];
    std::copy_n(tensor.tensor.ndim == 4 ? outs : lses, tensor.tensor.ndim, tensor.strides);
  };
  const auto copy_turned = [&](Array& to, const Array& from) {
    for (int64_t row = 0; row < s.B * s.M * s.H; ++row) {
      const int64_t b = row / s.H / s.M, m = row / s.H % s.M, h = row % s.H;
      if (from.shape().size() == 3) {
        to.set((b * s.M + m) * s.H + h, from.get((b * s.H + h) * s.M + m));
        continue;
      }
      for (int64_t v = 0; v < s.Kv; ++v) {
        to.set(((b * s.H + h) * s.M + m) * s.Kv + v, from.get(from.at(b, m, h, v)));
      }
    }
  };
  for (int64_t c = 0; c < s.chunks; ++c) {
    copy_turned(turned.chunk_outs.arrays[c], plain.chunk_outs.arrays[c]);
    copy_turned(turned.chunk_lses.arrays[c], plain.chunk_lses.arrays[c]);
    for (ChunkList* list : {&turned.chunk_outs, &turned.chunk_lses, &turned.grad_chunk_outs,
                            &turned.grad_chunk_lses}) {
      turn(*list, c);
    }
  }
  for (MergeCalls* calls : {&plain, &turned}) {
    CHECK_IN(calls->error.message, calls->run_forward() == ATTN_OK);
    CHECK_IN(calls->error.message, calls->run_backward() == ATTN_OK);
  }
  CHECK(turned.out().bytes() == plain.out().bytes());
  CHECK(turned.lse().bytes() == plain.lse().bytes());
  for (int64_t c = 0; c < s.chunks; ++c) {
    Array out(kFloat32, plain.out().shape()), lse(kFloat32, plain.lse().shape());
    copy_turned(out, plain.grad_chunk_outs.arrays[c]);
    copy_turned(lse, plain.grad_chunk_lses.arrays[c]);
    CHECK(turned.grad_chunk_outs.arrays[c].bytes() == out.bytes());
    CHECK(turned.grad_chunk_lses.arrays[c].bytes() == lse.bytes());
  }
}

// A NaN or an infinite lse spoils its own row, whatever the others hold.
void run_undefined_rows() {
  for (const double value : {static_cast<double>(NAN), HUGE_VAL}) {
    MergeCalls calls(kFloat32, kFloat32, {});
    calls.chunk_lses.arrays[1].set(0, value);
    CHECK(calls.run_forward() == ATTN_OK);
    CHECK(std::isnan(calls.lse().get(0)) && std::isnan(calls.out().get(0)));
    CHECK(!std::isnan(calls.lse().get(1)));
  }
}

void run_empty_cases() {
  for (const MergeShape& shape : {MergeShape{.B = 0}, MergeShape{.M = 0}, MergeShape{.H = 0}}) {
    MergeCalls calls(kFloat32, kFloat32, shape);
    CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
    CHECK_IN(calls.error.message, calls.run_backward() == ATTN_OK);
  }
}

// A launch on a GPU carries no more addresses of arrays that lie anywhere.
int64_t most_separate_chunks() { return Array::device_type == ATTN_DEVICE_CUDA ? 112 : 1024; }

}  // namespace

int main() {
  if (!runs_forced_isa()) return check::kSkipped;
  for (const Precision& precision : kPrecisions) {
    if (!is_served(precision)) continue;
    for (const MergeShape& shape : kShapes) {
      if (shape.chunks <= most_separate_chunks()) run_case(precision, shape);
    }
  }
  run_output_dtypes();
  run_partial_gradients();
  run_strides();
  run_undefined_rows();
  run_empty_cases();
  return check::outcome();
}
