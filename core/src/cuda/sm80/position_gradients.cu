// Queues what finds the gradients of positions' features and tables.
#include "cuda/launch.cuh"
#include "cuda/sm80/backward_instances.h"
#include "cuda/sm80/position_feature_gradients.cuh"
#include "cuda/sm80/position_table_gradients.cuh"

namespace attn::cuda::sm80 {
namespace {

constexpr int kTableThreads = 256;

void launch_features(const BackwardArguments& a, void* stream) {
  const BackwardProblem& p = a.problem;
  const auto launch_one = [&](void (*kernel)(BackwardArguments), int64_t rows,
                              const PositionTerm& term) {
    launch(kernel, {.x = tiles_of<RareShape>(rows) * p.Hq * p.B, .y = position_chunks(term)},
           RareShape::kThreads, RareMemory::kBytes, stream, a);
  };
  if (grad_features<Side::kQueries>(p)) {
    launch_one(&position_query_gradients_kernel<RareShape::kThreads>, p.Mq, p.positions.of_queries);
  }
  if (grad_features<Side::kKeys>(p)) {
    launch_one(&position_key_gradients_kernel<RareShape::kThreads>, p.Mkv, p.positions.of_keys);
  }
}

void launch_table(const PositionTableArguments& a, void* stream) {
  const BackwardProblem& p = a.backward.problem;
  const PositionTerm& term = a.of_keys ? p.positions.of_keys : p.positions.of_queries;
  launch(&position_table_sums_kernel<RareShape::kThreads>,
         {.x = tiles_of<RareShape>(a.count) * p.Hq, .y = position_chunks(term)},
         RareShape::kThreads, RareMemory::kBytes, stream, a);
  const int64_t heads =
      (a.of_keys ? p.grad_query_table : p.grad_key_table).stride_h == 0 ? 1 : p.Hq;
  launch(&position_table_gradients_kernel<kTableThreads>,
         {.x = heads * term.num_table_rows, .y = (term.width + kWarpLanes - 1) / kWarpLanes},
         kTableThreads, kTableThreads * sizeof(double), stream, a);
}

}  // namespace

void launch_position_gradients(const BackwardArguments& a, float* sums, void* stream) {
  const BackwardProblem& p = a.problem;
  launch_features(a, stream);
  PositionTableArguments table{
      .backward = a, .of_keys = false, .sums = sums, .first = -p.Mq, .count = distances_of(p)};
  if (p.grad_key_table) launch_table(table, stream);
  table.of_keys = true;  // the sums serve one table after the other
  if (p.grad_query_table) launch_table(table, stream);
}

}  // namespace attn::cuda::sm80
