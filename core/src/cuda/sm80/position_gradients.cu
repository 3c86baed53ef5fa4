// Queues what finds the gradients of positions' features and tables. Tiles of one width serve all.
#include "cuda/launch.cuh"
#include "cuda/sm80/backward_instances.h"
#include "cuda/sm80/position_feature_gradients.cuh"
#include "cuda/sm80/position_table_gradients.cuh"

namespace attn::cuda::sm80 {
namespace {

constexpr int kTableThreads = 256;

template <class Element>
void launch_features(const BackwardArguments& a, void* stream) {
  const BackwardProblem& p = a.problem;
  const auto launch_one = [&](void (*kernel)(BackwardArguments), int64_t rows,
                              const PositionTerm& term) {
    launch(kernel,
           {.x = tiles_of<Element, kWidestTile>(rows) * p.Hq * p.B, .y = position_chunks(term)},
           GradientShape<Element, kWidestTile>::kThreads, TileMemory<Element, kWidestTile>::kBytes,
           stream, a);
  };
  if (grad_features<Side::kQueries>(p)) {
    launch_one(&position_query_gradients_kernel<Element, kWidestTile>, p.Mq,
               p.positions.of_queries);
  }
  if (grad_features<Side::kKeys>(p)) {
    launch_one(&position_key_gradients_kernel<Element, kWidestTile>, p.Mkv, p.positions.of_keys);
  }
}

template <class Element>
void launch_table(const PositionTableArguments& a, void* stream) {
  const BackwardProblem& p = a.backward.problem;
  const PositionTerm& term = a.of_keys ? p.positions.of_keys : p.positions.of_queries;
  launch(&position_table_sums_kernel<Element, kWidestTile>,
         {.x = tiles_of<Element, kWidestTile>(a.count) * p.Hq, .y = position_chunks(term)},
         GradientShape<Element, kWidestTile>::kThreads, TileMemory<Element, kWidestTile>::kBytes,
         stream, a);
  const int64_t heads =
      (a.of_keys ? p.grad_query_table : p.grad_key_table).stride_h == 0 ? 1 : p.Hq;
  launch(&position_table_gradients_kernel<kTableThreads>,
         {.x = heads * term.size, .y = (term.width + kWarpLanes - 1) / kWarpLanes}, kTableThreads,
         kTableThreads * sizeof(double), stream, a);
}

// The sums serve one table after the other.
template <class Element>
void launch_all(const BackwardArguments& a, float* sums, void* stream) {
  const BackwardProblem& p = a.problem;
  launch_features<Element>(a, stream);
  PositionTableArguments table{
      .backward = a, .of_keys = false, .sums = sums, .first = -p.Mq, .count = distances_of(p)};
  if (p.grad_key_table) launch_table<Element>(table, stream);
  table.of_keys = true;
  if (p.grad_query_table) launch_table<Element>(table, stream);
}

}  // namespace

void launch_position_gradients(const BackwardArguments& a, float* sums, void* stream) {
  switch (a.problem.query.dtype) {
    case DType::kFloat16: return launch_all<Half>(a, sums, stream);
    case DType::kBFloat16: return launch_all<BFloat16>(a, sums, stream);
    default: return launch_all<float>(a, sums, stream);
  }
}

}  // namespace attn::cuda::sm80
