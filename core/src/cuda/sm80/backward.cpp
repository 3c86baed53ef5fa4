// The backward: its workspace, and which kernels run.
#include "cuda/sm80/backward.h"

#include <algorithm>

#include "cuda/aligned_rows.h"
#include "cuda/limits.h"
#include "cuda/sm80/backward_instances.h"
#include "cuda/sm80/few_keys.h"
#include "cuda/sm80/one_pass.h"
#include "problem/refusal.h"

namespace attn::cuda::sm80 {
namespace {

void require_shared_memory(const DeviceProperties& device) {
  if (device.shared_bytes < kMostSharedBytes) {
    refuse_unsupported(
        "expected a GPU with %lld bytes of shared memory for a block in the backward, got %lld; "
        "use a newer GPU or the CPU",
        static_cast<long long>(kMostSharedBytes), static_cast<long long>(device.shared_bytes));
  }
}

// Hands out pieces of the workspace, each at a multiple of 64 bytes; of a null one it measures.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  char* take(int64_t bytes) {
    const int64_t at = used_;
    used_ += (bytes + 63) / 64 * 64;
    return base_ ? base_ + at : nullptr;
  }
  size_t used() const { return static_cast<size_t>(used_); }

 private:
  char* base_;
  int64_t used_ = 0;
};

// A number for each query row.
RowScalars take_row_scalars(const Problem& p, Workspace& workspace) {
  const int64_t count = p.B * p.Hq * p.Mq;
  return {workspace.take(count * static_cast<int64_t>(sizeof(float))), p.Hq * p.Mq, p.Mq, 1};
}

// Whether the plain kernels do: a band and sequences in rows that copies take, nothing else.
bool is_plain(const BackwardArguments& a) {
  const BackwardProblem& p = a.problem;
  return !p.bias && !p.blocks && !p.dropout.enabled && !p.slopes && !p.table && p.softcap == 0.0 &&
         !p.pages.table && !p.positions && !a.keeps_rests && a.query_is_aligned &&
         a.key_is_aligned && a.value_is_aligned && a.grad_out_is_aligned;
}

// Whether the pass for dK stores dBias too: dS as it stands, each tile once.
bool stores_grad_bias(const BackwardProblem& p) {
  const bool sums =
      p.grad_bias_sums_b || p.grad_bias_sums_h || p.grad_bias_sums_m || p.grad_bias_sums_n;
  return p.grad_bias && !sums && p.softcap == 0.0 && !p.sequences && !p.blocks;
}

// Whether some queries do not see some keys: their elements of dBias are written by nobody.
bool excludes_pairs(const Problem& p) {
  const int64_t shift = p.band.bottom_right ? p.Mkv - p.Mq : 0;
  return p.band.left < p.Mq - 1 + shift || p.band.right < p.Mkv - 1 - shift;
}

// Room for one for each block of threads of any shape.
int32_t* take_flags(int64_t rows, int64_t heads, int64_t batch, Workspace& workspace) {
  constexpr int64_t kFewestRows = 32, kMostRoles = 2;
  const int64_t tiles = (rows + kFewestRows - 1) / kFewestRows;
  const int64_t bytes = tiles * heads * batch * kMostRoles * static_cast<int64_t>(sizeof(int32_t));
  return reinterpret_cast<int32_t*>(workspace.take(bytes));
}

// A call's arguments, and what of the workspace is to be cleared first.
struct PlacedArguments {
  OnePassArguments arguments{};
  char* counts = nullptr;
  size_t bytes_of_counts = 0;
};

PlacedArguments place_arguments(const BackwardProblem& problem, const DeviceProperties& device,
                                Workspace& workspace) {
  PlacedArguments placed;
  BackwardArguments& a = placed.arguments.backward;
  a.problem = problem;
  BackwardProblem& p = a.problem;
  p.lse_maximum = take_row_scalars(p, workspace);
  p.lse_rest = take_row_scalars(p, workspace);
  a.delta = take_row_scalars(p, workspace);
  const size_t before = workspace.used();
  placed.counts = workspace.take(0);
  int32_t* const redo_keys = take_flags(p.Mkv, p.Hkv, p.B, workspace);
  int32_t* const redo_queries = take_flags(p.Mq, p.Hq, p.B, workspace);
  const OnePassBytes one_pass = one_pass_bytes(p, device);
  int32_t* const redo_bias = reinterpret_cast<int32_t*>(
      workspace.take(p.B * p.Hq * static_cast<int64_t>(sizeof(int32_t))));
  placed.arguments.tickets = reinterpret_cast<int32_t*>(workspace.take(sizeof(int32_t)));
  placed.arguments.turns = reinterpret_cast<int32_t*>(workspace.take(one_pass.turns));
  placed.bytes_of_counts = workspace.used() - before;
  placed.arguments.sums = workspace.take(one_pass.sums);
  const DType dtype = p.query.dtype;
  a.query_is_aligned = has_aligned_rows(p.query, dtype, p.K);
  a.key_is_aligned = has_aligned_rows(p.key, dtype, p.K);
  a.value_is_aligned = has_aligned_rows(p.value, dtype, p.Kv);
  a.grad_out_is_aligned = has_aligned_rows(p.grad_out, dtype, p.Kv);
  a.stores_grad_bias = stores_grad_bias(p);
  a.keeps_rests = keeps_rests(p);
  a.is_one_pass = one_pass && is_aligned_for_one_pass(a);
  if (a.is_one_pass || is_plain(a)) {
    a.redo_keys = redo_keys;
    a.redo_queries = redo_queries;
  }
  if (sums_bias_in_one_pass(a)) a.redo_bias = redo_bias;
  return placed;
}

// What the gradients of tables are summed in.
int64_t position_sums_bytes(const BackwardProblem& p) {
  const int64_t of_queries = p.grad_key_table ? p.positions.of_queries.width : 0;
  const int64_t of_keys = p.grad_query_table ? p.positions.of_keys.width : 0;
  return p.Hq * distances_of(p) * std::max(of_queries, of_keys) *
         static_cast<int64_t>(sizeof(float));
}

void launch_gradients(const BackwardArguments& a, void* stream) {
  const int64_t width = std::max(a.problem.K, a.problem.Kv);
  if (a.problem.positions) {
    if (width <= 64) return launch_gradients_by_position_64(a, stream);
    return launch_gradients_by_position_256(a, stream);
  }
  if (width <= 64) return launch_gradients_64(a, stream);
  if (width <= 128) return launch_gradients_128(a, stream);
  launch_gradients_256(a, stream);
}

}  // namespace

size_t backward_workspace(const BackwardProblem& problem, const DeviceProperties& device) {
  require_shared_memory(device);
  Workspace workspace(nullptr);
  place_arguments(problem, device, workspace);
  workspace.take(distance_sums_bytes(problem));
  workspace.take(position_sums_bytes(problem));
  return workspace.used();
}

void backward(const BackwardProblem& problem, const DeviceProperties& device, void* memory,
              void* stream) {
  Workspace workspace(memory);
  const PlacedArguments placed = place_arguments(problem, device, workspace);
  const BackwardArguments& a = placed.arguments.backward;
  launch_row_statistics(a, stream);
  if (a.stores_grad_bias && excludes_pairs(problem)) launch_clear_bias(a, stream);
  if (a.redo_keys) clear_memory(placed.counts, placed.bytes_of_counts, stream);
  if (a.is_one_pass) launch_one_pass(placed.arguments, stream);
  if (a.redo_bias) launch_one_pass_bias(a, stream);
  launch_gradients(a, stream);
  if (problem.positions) {
    char* const sums = workspace.take(position_sums_bytes(problem));
    launch_position_gradients(a, reinterpret_cast<float*>(sums), stream);
  }
  if (problem.grad_bias && !a.stores_grad_bias) launch_bias_gradient(a, stream);
  if (problem.grad_slopes || problem.grad_table) {
    char* const sums = workspace.take(distance_sums_bytes(problem));
    launch_distance_gradients(a, reinterpret_cast<double*>(sums), stream);
  }
  if (problem.grad_sink) launch_sink_gradient(a, stream);
}

}  // namespace attn::cuda::sm80
