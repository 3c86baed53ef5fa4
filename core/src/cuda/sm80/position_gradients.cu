// Queues what finds the gradients of positions' features and tables.
#include "cuda/launch.cuh"
#include "cuda/sm80/backward_instances.h"
#include "cuda/sm80/position_feature_gradients.cuh"
#include "cuda/sm80/position_table_gradients.cuh"

namespace attn::cuda::sm80 {
namespace {

constexpr int kTableThreads = 256;

// One for each two rows that a query and a key may be apart.
int64_t distances(const Problem& p) { return p.Mq + p.Mkv; }

template <class Element, int kWidth>
void launch_features(const BackwardArguments& a, void* stream) {
  const BackwardProblem& p = a.problem;
  const auto launch_one = [&](void (*kernel)(BackwardArguments), int64_t rows,
                              const PositionTerm& term) {
    launch(kernel, {.x = tiles_of<Element, kWidth>(rows) * p.Hq * p.B, .y = position_chunks(term)},
           GradientShape<Element, kWidth>::kThreads, TileMemory<Element, kWidth>::kBytes, stream,
           a);
  };
  if (p.grad_position_query) {
    launch_one(&position_query_gradients_kernel<Element, kWidth>, p.Mq, p.positions.of_queries);
  }
  if (p.grad_position_key) {
    launch_one(&position_key_gradients_kernel<Element, kWidth>, p.Mkv, p.positions.of_keys);
  }
}

template <class Element, int kWidth>
void launch_table(const PositionTableArguments& a, void* stream) {
  const BackwardProblem& p = a.backward.problem;
  const PositionTerm& term = a.of_keys ? p.positions.of_keys : p.positions.of_queries;
  launch(&position_table_sums_kernel<Element, kWidth>,
         {.x = tiles_of<Element, kWidth>(a.count) * p.Hq, .y = position_chunks(term)},
         GradientShape<Element, kWidth>::kThreads, TileMemory<Element, kWidth>::kBytes, stream, a);
  const int64_t heads =
      (a.of_keys ? p.grad_query_table : p.grad_key_table).stride_h == 0 ? 1 : p.Hq;
  launch(&position_table_gradients_kernel<kTableThreads>,
         {.x = heads * term.rows, .y = (term.width + kWarpLanes - 1) / kWarpLanes}, kTableThreads,
         kTableThreads * sizeof(double), stream, a);
}

// The sums serve one table after the other.
template <class Element, int kWidth>
void launch_all(const BackwardArguments& a, float* sums, void* stream) {
  const BackwardProblem& p = a.problem;
  launch_features<Element, kWidth>(a, stream);
  PositionTableArguments table{
      .backward = a, .of_keys = false, .sums = sums, .first = -p.Mq, .count = distances(p)};
  if (p.grad_key_table) launch_table<Element, kWidth>(table, stream);
  table.of_keys = true;
  if (p.grad_query_table) launch_table<Element, kWidth>(table, stream);
}

template <class Element>
void launch_widths(const BackwardArguments& a, float* sums, void* stream) {
  if (a.problem.K <= 64 && a.problem.Kv <= 64) return launch_all<Element, 64>(a, sums, stream);
  launch_all<Element, kWidestTile>(a, sums, stream);
}

}  // namespace

int64_t position_sums_bytes(const BackwardProblem& p) {
  const int64_t of_queries = p.grad_key_table ? p.positions.of_queries.width : 0;
  const int64_t of_keys = p.grad_query_table ? p.positions.of_keys.width : 0;
  return p.Hq * distances(p) * (of_queries > of_keys ? of_queries : of_keys) *
         static_cast<int64_t>(sizeof(float));
}

void launch_position_gradients(const BackwardArguments& a, float* sums, void* stream) {
  switch (a.problem.query.dtype) {
    case DType::kFloat16: return launch_widths<Half>(a, sums, stream);
    case DType::kBFloat16: return launch_widths<BFloat16>(a, sums, stream);
    default: return launch_widths<float>(a, sums, stream);
  }
}

}  // namespace attn::cuda::sm80
