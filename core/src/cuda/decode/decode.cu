// Decoding: its workspace, its splits and their merge.
#include "cuda/aligned_rows.h"
#include "cuda/decode/decode.h"
#include "cuda/decode/decode_kernel.cuh"
#include "cuda/decode/merge_kernel.cuh"
#include "cuda/launch.cuh"

namespace attn::cuda::decode {
namespace {

constexpr int64_t kFloatBytes = static_cast<int64_t>(sizeof(float));

int64_t splits_of(const Problem& p) {
  const int64_t splits = (p.most_keys + kSplitKeys - 1) / kSplitKeys;
  return splits > 1 ? splits : 1;
}

int64_t rows_of(const Problem& p) { return p.B * p.Hq * p.Mq; }

DecodeArguments arguments_of(const ForwardProblem& p, void* workspace) {
  const DType dtype = p.query.dtype;
  DecodeArguments a{.problem = p,
                    .splits = splits_of(p),
                    .query_is_aligned = has_aligned_rows(p.query, dtype, p.K),
                    .key_is_aligned = has_aligned_rows(p.key, dtype, p.K),
                    .value_is_aligned = has_aligned_rows(p.value, dtype, p.Kv),
                    .partial_out = {},
                    .maxima = {},
                    .totals = {},
                    .out_step = rows_of(p) * p.Kv * kFloatBytes,
                    .row_step = rows_of(p) * kFloatBytes};
  char* const memory = static_cast<char*>(workspace);
  const RowScalars rows{.data = memory + a.splits * a.out_step,
                        .stride_b = p.Hq * p.Mq,
                        .stride_h = p.Mq,
                        .stride_m = 1};
  a.partial_out = {.data = memory,
                   .dtype = DType::kFloat32,
                   .stride_b = p.Mq * p.Hq * p.Kv,
                   .stride_m = p.Hq * p.Kv,
                   .stride_h = p.Kv};
  a.maxima = a.totals = rows;
  a.totals.data += a.splits * a.row_step;
  return a;
}

template <class Element, int kWidth>
void launch_tiles(const DecodeArguments& a, void* stream) {
  launch(&decode_kernel<Element, kWidth>, {.x = a.splits * a.problem.Hkv * a.problem.num_sequences},
         DecodeShape<Element, kWidth>::kThreads, DecodeSplit<Element, kWidth>::kBytes, stream, a);
}

template <class Element>
void launch_widths(const DecodeArguments& a, void* stream) {
  const int64_t width = a.problem.K > a.problem.Kv ? a.problem.K : a.problem.Kv;
  if (width <= 64) return launch_tiles<Element, 64>(a, stream);
  if (width <= 128) return launch_tiles<Element, 128>(a, stream);
  launch_tiles<Element, 256>(a, stream);
}

void launch_splits(const DecodeArguments& a, void* stream) {
  switch (a.problem.query.dtype) {
    case DType::kFloat16: return launch_widths<Half>(a, stream);
    case DType::kBFloat16: return launch_widths<BFloat16>(a, stream);
    default: return launch_widths<float>(a, stream);
  }
}

void launch_merge(const DecodeArguments& a, void* stream) {
  const ForwardProblem& p = a.problem;
  MergeForwardArguments merge{.chunks = {},
                              .M = p.Mq,
                              .H = p.Hq,
                              .Kv = p.Kv,
                              .rows = rows_of(p),
                              .dtype = DType::kFloat32,
                              .out = p.out,
                              .lse = p.lse,
                              .totals = a.totals};
  merge.chunks.count = a.splits;
  merge.chunks.first.out = a.partial_out;
  merge.chunks.first.lse = a.maxima;
  merge.chunks.steps[0] = a.out_step;
  merge.chunks.steps[1] = a.row_step;
  launch(&merge_forward_kernel<kMergeThreads>, {.x = (merge.rows + kMergeWarps - 1) / kMergeWarps},
         kMergeThreads, 0, stream, merge);
}

// The widest tiles take this.
constexpr int64_t kSharedBytes = DecodeSplit<float, 256>::kBytes;

}  // namespace

bool serves(const ForwardProblem& p, const DeviceProperties& device) {
  return device.shared_bytes >= kSharedBytes && p.G * p.most_queries <= kRows &&
         p.num_sequences > 0 && !p.positions;
}

size_t forward_workspace(const ForwardProblem& p) {
  const int64_t splits = splits_of(p);
  if (splits == 1) return 0;
  return static_cast<size_t>(splits * rows_of(p) * (p.Kv + 2) * kFloatBytes);
}

void forward(const ForwardProblem& p, void* workspace, void* stream) {
  const DecodeArguments a = arguments_of(p, workspace);
  launch_splits(a, stream);
  if (a.splits > 1) launch_merge(a, stream);
}

}  // namespace attn::cuda::decode
