// Queues the kernels of a merge.
#include "cuda/decode/merge.h"
#include "cuda/decode/merge_kernel.cuh"
#include "cuda/launch.cuh"
#include "problem/refusal.h"

namespace attn::cuda::decode {
namespace {

// Whether all arrays of the list have the strides of the first chunk's.
bool are_alike(const MergeProblem& p) {
  bool alike = true;
  for (int64_t c = 0; c < p.num_chunks; ++c) {
    MergeChunk first = p.chunks[0];
    const auto compare = [&](const auto& x, const auto& y) {
      alike &= x.stride_b == y.stride_b && x.stride_m == y.stride_m && x.stride_h == y.stride_h;
    };
    compare(p.chunks[c].out, first.out);
    compare(p.chunks[c].lse, first.lse);
    compare(p.chunks[c].grad_out, first.grad_out);
    compare(p.chunks[c].grad_lse, first.grad_lse);
  }
  return alike;
}

// Whether array c of each kind begins c times as far after the first as the second does. Stores
// those distances.
bool are_spaced(const MergeProblem& p, int64_t (&steps)[ChunkTable::kPointers]) {
  char* data[2][ChunkTable::kPointers];
  for (int c = 0; c < 2; ++c) {
    ChunkTable::each_array(p.chunks[c], [&](const auto& x, int which) { data[c][which] = x.data; });
  }
  for (int which = 0; which < ChunkTable::kPointers; ++which) {
    steps[which] = data[1][which] - data[0][which];
  }
  bool spaced = true;
  for (int64_t c = 0; c < p.num_chunks; ++c) {
    ChunkTable::each_array(p.chunks[c], [&](const auto& x, int which) {
      spaced &= x.data == data[0][which] + c * steps[which];
    });
  }
  return spaced;
}

void list_chunks(const MergeProblem& p, ChunkTable& table) {
  for (int64_t c = 0; c < p.num_chunks; ++c) {
    int64_t* const own = table.words + c * table.record;
    ChunkTable::each_array(p.chunks[c], [&](const auto& x, int which) {
      own[which] = reinterpret_cast<int64_t>(x.data);
      if (table.record == ChunkTable::kPointers) return;
      int64_t* const strides = own + ChunkTable::kPointers + 3 * which;
      strides[0] = x.stride_b;
      strides[1] = x.stride_m;
      strides[2] = x.stride_h;
    });
  }
}

ChunkTable table_of(const MergeProblem& p) {
  ChunkTable table;
  table.count = p.num_chunks;
  table.first = p.chunks[0];
  const bool alike = are_alike(p);
  table.record = ChunkTable::kPointers + (alike ? 0 : ChunkTable::kStrides);
  if (table.count * table.record <= ChunkTable::kWords) {
    list_chunks(p, table);
  } else if (alike && are_spaced(p, table.steps)) {
    table.record = 0;
  } else {
    refuse_unsupported(
        "expected at most %lld chunks like these on a GPU, got %lld; pass the chunks of one "
        "stacked array or merge the results of merges",
        static_cast<long long>(ChunkTable::kWords / table.record),
        static_cast<long long>(table.count));
  }
  return table;
}

void require_served(const MergeProblem& p) {
  if (p.dtype != DType::kFloat64) return;
  refuse_unsupported(
      "expected float32, bfloat16 or float16 on a GPU, got float64; convert the tensors or move "
      "them to the CPU");
}

Grid grid_of(int64_t rows) { return {.x = (rows + kMergeWarps - 1) / kMergeWarps}; }

}  // namespace

void merge_forward(const MergeForwardProblem& p, void* stream) {
  require_served(p);
  const MergeForwardArguments arguments{.chunks = table_of(p),
                                        .M = p.M,
                                        .H = p.H,
                                        .Kv = p.Kv,
                                        .rows = p.B * p.H * p.M,
                                        .dtype = p.dtype,
                                        .out = p.out,
                                        .lse = p.lse,
                                        .totals = {}};
  launch(&merge_forward_kernel<kMergeThreads>, grid_of(arguments.rows), kMergeThreads, 0, stream,
         arguments);
}

void merge_backward(const MergeBackwardProblem& p, void* stream) {
  require_served(p);
  const MergeBackwardArguments arguments{.chunks = table_of(p),
                                         .M = p.M,
                                         .H = p.H,
                                         .Kv = p.Kv,
                                         .rows = p.B * p.H * p.M,
                                         .dtype = p.dtype,
                                         .grad_out = p.grad_out,
                                         .grad_lse = p.grad_lse,
                                         .wants_grad_lses = p.wants_grad_lses};
  const size_t bytes = static_cast<size_t>(kMergeWarps * p.num_chunks) * sizeof(float);
  launch(&merge_backward_kernel<kMergeThreads>, grid_of(arguments.rows), kMergeThreads, bytes,
         stream, arguments);
}

}  // namespace attn::cuda::decode
