// The rules of attn/step.h, argument by argument.
#include "problem/read_step.h"

#include "problem/growable_struct.h"
#include "problem/read_mask.h"
#include "problem/read_operands.h"
#include "problem/refusal.h"

namespace attn {
namespace {

// Beyond all steps that any stream takes, and small enough to add to.
constexpr int64_t kPositionLimit = int64_t{1} << 62;

void check_one_row(const char* name, int64_t rows) {
  if (rows == 1) return;
  refuse_argument("expected %s of one step, got %lld rows (axis 1); call once per step", name,
                  static_cast<long long>(rows));
}

// Reads this step's rows, which set every extent but that of the rings.
void read_rows(const attn_step_args& args, TensorReader& reader, StepProblem& problem) {
  ForwardProblem& attention = problem.attention;
  read_operands(args.query, args.key, args.value, reader, attention);
  check_one_row("query", attention.Mq);
  check_one_row("key", attention.Mkv);
  problem.query = attention.query;
  problem.key = attention.key;
  problem.value = attention.value;
}

HeadRows read_ring(const char* name, const attn_tensor* ring, Axis slots, Axis heads, Axis width,
                   TensorReader& reader, const Problem& problem) {
  return reader.head_rows({.name = name,
                           .access = Access::kWritten,
                           .dtypes = only(problem.query.dtype),
                           .axes = {axis("B", problem.B, "query"), slots, heads, width}},
                          ring);
}

// Reads the rings, and makes them what is attended to.
void read_rings(const attn_step_args& args, TensorReader& reader, StepProblem& problem) {
  ForwardProblem& attention = problem.attention;
  const Axis heads = axis("Hkv", attention.Hkv, "key");
  attention.key = read_ring("key_ring", args.key_ring, free_axis("R"), heads,
                            axis("K", attention.K, "query"), reader, attention);
  const int64_t slots = args.key_ring->shape[1];
  attention.value = read_ring("value_ring", args.value_ring, axis("R", slots, "key_ring"), heads,
                              axis("Kv", attention.Kv, "value"), reader, attention);
  attention.Mkv = slots;
  if (args.window < 1 || args.window > slots) {
    refuse_argument("expected window in [1, R], R=%lld slots, got %lld; make the rings longer",
                    static_cast<long long>(slots), static_cast<long long>(args.window));
  }
  problem.window = args.window;
}

void read_query_ring(const attn_step_args& args, TensorReader& reader, StepProblem& problem) {
  const ForwardProblem& attention = problem.attention;
  if (!args.query_ring) {
    if (!args.attending_query) return;
    refuse_argument("expected query_ring to be a tensor with attending_query, got NULL; pass both");
  }
  const Axis heads = axis("Hq", attention.Hq, "query"), width = axis("K", attention.K, "query");
  problem.query_ring =
      read_ring("query_ring", args.query_ring, free_axis("D"), heads, width, reader, attention);
  problem.delay = args.query_ring->shape[1];
  if (problem.delay < 1) {
    refuse_argument(
        "expected query_ring's extent D (axis 1) to be at least 1, got 0; pass NULL where no query "
        "waits");
  }
  if (!args.attending_query) return;
  problem.attending_query = read_ring("attending_query", args.attending_query,
                                      axis("Mq", 1, "query"), heads, width, reader, attention);
}

StreamValues read_stream_values(const char* name, const attn_tensor* given, Access access,
                                DType dtype, int ndim, TensorReader& reader,
                                const Problem& problem) {
  return reader.stream_values(
      {.name = name,
       .access = access,
       .dtypes = only(dtype),
       .axes = {axis("B", problem.B, "query"), axis("R", problem.Mkv, "key_ring"), {}, {}}},
      ndim, given);
}

void check_positions(const StepProblem& problem) {
  for (int64_t b = 0; b < problem.attention.B; ++b) {
    const int64_t position = problem.position.at<int64_t>(b);
    if (position >= 0 && position < kPositionLimit) continue;
    refuse_argument("expected position in [0, 2^62), got %lld in stream %lld; count steps from 0",
                    static_cast<long long>(position), static_cast<long long>(b));
  }
}

void read_streams(const attn_step_args& args, TensorReader& reader, StepProblem& problem) {
  const auto flags = [&](const char* name, const attn_tensor* given) {
    if (!given) return StreamValues{};
    return read_stream_values(name, given, Access::kRead, DType::kBool, 1, reader,
                              problem.attention);
  };
  problem.position = read_stream_values("position", args.position, Access::kWritten, DType::kInt64,
                                        1, reader, problem.attention);
  problem.padding = flags("padding", args.padding);
  problem.active = flags("active", args.active);
  if (args.padding_ring) {
    problem.padding_ring = read_stream_values("padding_ring", args.padding_ring, Access::kWritten,
                                              DType::kBool, 2, reader, problem.attention);
  } else if (args.padding) {
    refuse_argument("expected padding_ring to be a tensor with padding, got NULL; pass both");
  }
  if (reader.reads_data()) check_positions(problem);
}

void read_window_bias(const attn_tensor* bias, TensorReader& reader, StepProblem& problem) {
  const Problem& attention = problem.attention;
  problem.bias = read_bias(bias, broadcast_axis("L", problem.window, "window"), reader, attention);
  const bool is_shared = attention.Hq > 0 && problem.bias.stride_h == 0;
  problem.bias_heads = is_shared ? 1 : attention.Hq;
}

}  // namespace

StepCall read_step(const attn_step_args* given, TensorReader::Data data) {
  const attn_step_args args = read_growable<attn_step_args>("args", given, ATTN_STEP_INIT);
  StepCall call;
  StepProblem& problem = call.problem;
  ForwardProblem& attention = problem.attention;
  TensorReader reader(data);
  read_rows(args, reader, problem);
  attention.scale = read_scale(args.scale, attention.K);
  read_rings(args, reader, problem);
  read_query_ring(args, reader, problem);
  read_mask(nullptr, reader, attention);
  read_streams(args, reader, problem);
  if (args.bias) read_window_bias(args.bias, reader, problem);
  attention.out = reader.head_rows(
      out_rows("out", Access::kWritten, out_dtypes(attention.query.dtype), attention), args.out);
  if (args.lse) {
    attention.lse = reader.row_scalars(lse_rows("lse", Access::kWritten, attention), args.lse);
  }
  call.resources = read_resources(reader, args.exec, args.workspace, args.workspace_bytes);
  return call;
}

}  // namespace attn
