// The rules of attn/merge.h, argument by argument.
#include "problem/read_merge.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "problem/growable_struct.h"
#include "problem/read_operands.h"
#include "problem/refusal.h"
#include "problem/tensor_reader.h"

namespace attn {
namespace {

constexpr const char* kOwner = "chunk_outs[0]";  // of every extent, and of the dtype

void read_extents(const attn_tensor* first_chunk, TensorReader& reader, MergeProblem& problem) {
  const HeadRows rows =
      reader.head_rows({.name = kOwner,
                        .access = Access::kRead,
                        .dtypes = kFloating,
                        .axes = {free_axis("B"), free_axis("M"), free_axis("H"), free_axis("Kv")}},
                       first_chunk);
  problem.dtype = rows.dtype;
  problem.B = first_chunk->shape[0];
  problem.M = first_chunk->shape[1];
  problem.H = first_chunk->shape[2];
  problem.Kv = first_chunk->shape[3];
  if (problem.Kv == 0) {
    refuse_argument("expected %s's width Kv >= 1, got 0; pass wider chunks", kOwner);
  }
}

// What an array of out's shape must be.
TensorSpec out_rows(const char* name, Access access, DTypes dtypes, const MergeProblem& problem) {
  return {.name = name,
          .access = access,
          .dtypes = dtypes,
          .axes = {axis("B", problem.B, kOwner), axis("M", problem.M, kOwner),
                   axis("H", problem.H, kOwner), axis("Kv", problem.Kv, kOwner)}};
}

TensorSpec lse_rows(const char* name, Access access, const MergeProblem& problem) {
  return {.name = name,
          .access = access,
          .dtypes = lse_dtypes(problem.dtype),
          .axes = {axis("B", problem.B, kOwner),
                   axis("H", problem.H, kOwner),
                   axis("M", problem.M, kOwner),
                   {}}};
}

MergeChunk read_chunk(const attn_tensor* out, const attn_tensor* lse, const MergeProblem& problem,
                      TensorReader& reader) {
  MergeChunk chunk;
  chunk.out =
      reader.head_rows(out_rows("chunk_out", Access::kRead, only(problem.dtype), problem), out);
  chunk.lse = reader.row_scalars(lse_rows("chunk_lse", Access::kRead, problem), lse);
  return chunk;
}

// Makes the chunks, and has `read(index, reader)` fill each. Every chunk gets a copy of the
// reader, so that checking one against all that was read before takes the same time for each.
template <class Read>
std::unique_ptr<MergeChunk[]> read_chunks(int64_t num_chunks, const TensorReader& reader,
                                          Read read) {
  std::unique_ptr<MergeChunk[]> chunks(new MergeChunk[static_cast<size_t>(num_chunks)]);
  for (int64_t c = 0; c < num_chunks; ++c) {
    TensorReader chunk_reader = reader;
    try {
      chunks[c] = read(c, chunk_reader);
    } catch (const Refusal& refusal) {
      refuse_argument("in chunk %lld, %s", static_cast<long long>(c), refusal.message);
    }
  }
  return chunks;
}

template <class Args>
void check_lists(const Args& args) {
  if (args.num_chunks < 1 || args.num_chunks > kMostMergeChunks) {
    refuse_argument("expected num_chunks in [1, %lld], got %lld; merge the results of merges",
                    static_cast<long long>(kMostMergeChunks),
                    static_cast<long long>(args.num_chunks));
  }
  if (!args.chunk_outs || !args.chunk_lses) {
    refuse_argument("expected %s to be an array of num_chunks tensors, got NULL; pass one",
                    args.chunk_outs ? "chunk_lses" : "chunk_outs");
  }
}

// Refuses a gradient that lies where a tensor of another chunk does. Sorted by where they begin,
// two tensors without gaps overlap if one begins before the furthest end so far.
void check_chunks_apart(std::vector<TensorReader::Seen> tensors) {
  using Seen = TensorReader::Seen;
  const auto is_written = [](const Seen& seen) { return seen.access == Access::kWritten; };
  std::sort(tensors.begin(), tensors.end(), [&](const Seen& a, const Seen& b) {
    return a.range.begin != b.range.begin ? a.range.begin < b.range.begin
                                          : is_written(a) < is_written(b);
  });
  uintptr_t last_begin = 0, end_of_all = 0, end_of_written = 0;
  for (const Seen& seen : tensors) {
    const MemoryRange& range = seen.range;
    const bool has_no_gaps = fills_its_range(*seen.tensor);
    if ((is_written(seen) && range.begin == last_begin) ||
        (has_no_gaps && range.begin < (is_written(seen) ? end_of_all : end_of_written))) {
      refuse_argument(
          "expected every chunk's gradients apart from the other chunks' tensors, got overlapping "
          "memory; give each its own memory");
    }
    last_begin = range.begin;
    if (!has_no_gaps) continue;
    end_of_all = std::max(end_of_all, range.end);
    if (is_written(seen)) end_of_written = std::max(end_of_written, range.end);
  }
}

template <class Args>
Args read_args(const Args* given, const Args& defaults) {
  const Args args = read_growable("args", given, defaults);
  check_lists(args);
  return args;
}

}  // namespace

MergeForwardCall read_merge_forward(const attn_merge_forward_args* given) {
  const attn_merge_forward_args args =
      read_args<attn_merge_forward_args>(given, ATTN_MERGE_FORWARD_INIT);
  MergeForwardCall call;
  MergeForwardProblem& problem = call.problem;
  TensorReader reader(TensorReader::Data::kUsed);
  read_extents(args.chunk_outs[0], reader, problem);
  problem.out = reader.head_rows(
      out_rows("out", Access::kWritten, out_dtypes(problem.dtype), problem), args.out);
  if (args.lse) {
    problem.lse = reader.row_scalars(lse_rows("lse", Access::kWritten, problem), args.lse);
  }
  call.chunks = read_chunks(args.num_chunks, reader, [&](int64_t c, TensorReader& chunk_reader) {
    return read_chunk(args.chunk_outs[c], args.chunk_lses[c], problem, chunk_reader);
  });
  problem.chunks = call.chunks.get();
  problem.num_chunks = args.num_chunks;
  call.resources = read_resources(reader, args.exec);
  return call;
}

MergeBackwardCall read_merge_backward(const attn_merge_backward_args* given) {
  const attn_merge_backward_args args =
      read_args<attn_merge_backward_args>(given, ATTN_MERGE_BACKWARD_INIT);
  MergeBackwardCall call;
  MergeBackwardProblem& problem = call.problem;
  TensorReader reader(TensorReader::Data::kUsed);
  read_extents(args.chunk_outs[0], reader, problem);
  problem.grad_out = reader.head_rows(
      out_rows("grad_out", Access::kRead, out_dtypes(problem.dtype), problem), args.grad_out);
  if (args.grad_lse) {
    problem.grad_lse =
        reader.row_scalars(lse_rows("grad_lse", Access::kRead, problem), args.grad_lse);
  }
  std::vector<TensorReader::Seen> seen;
  call.chunks = read_chunks(args.num_chunks, reader, [&](int64_t c, TensorReader& chunk_reader) {
    MergeChunk chunk = read_chunk(args.chunk_outs[c], args.chunk_lses[c], problem, chunk_reader);
    if (args.grad_chunk_outs && args.grad_chunk_outs[c]) {
      chunk.grad_out = chunk_reader.head_rows(
          out_rows("grad_chunk_out", Access::kWritten, only(problem.dtype), problem),
          args.grad_chunk_outs[c]);
    }
    if (args.grad_chunk_lses && args.grad_chunk_lses[c]) {
      chunk.grad_lse = chunk_reader.row_scalars(
          lse_rows("grad_chunk_lse", Access::kWritten, problem), args.grad_chunk_lses[c]);
      problem.wants_grad_lses = true;
    }
    const auto of_chunk = chunk_reader.seen().subspan(reader.seen().size());
    seen.insert(seen.end(), of_chunk.begin(), of_chunk.end());
    return chunk;
  });
  problem.chunks = call.chunks.get();
  problem.num_chunks = args.num_chunks;
  check_chunks_apart(std::move(seen));
  call.resources = read_resources(reader, args.exec);
  return call;
}

}  // namespace attn
