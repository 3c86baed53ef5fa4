// Queues the kernels of the backward that know positions.
#pragma once

#include "cuda/sm80/backward_launch.cuh"
#include "cuda/sm80/position_feature_gradients.cuh"
#include "cuda/sm80/position_table_gradients.cuh"

namespace attn::cuda::sm80 {

constexpr int kTableThreads = 256;

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
  BackwardLauncher<Element, kWidth>(a, stream).template launch_gradients<true, true>();
  launch_features<Element, kWidth>(a, stream);
  PositionTableArguments table{
      .backward = a, .of_keys = false, .sums = sums, .first = -p.Mq, .count = distances_of(p)};
  if (p.grad_key_table) launch_table<Element, kWidth>(table, stream);
  table.of_keys = true;
  if (p.grad_query_table) launch_table<Element, kWidth>(table, stream);
}

template <int kWidth>
void launch_gradients_by_position(const BackwardArguments& a, float* sums, void* stream) {
  switch (a.problem.query.dtype) {
    case DType::kFloat16: return launch_all<Half, kWidth>(a, sums, stream);
    case DType::kBFloat16: return launch_all<BFloat16, kWidth>(a, sums, stream);
    default: return launch_all<float, kWidth>(a, sums, stream);
  }
}

}  // namespace attn::cuda::sm80
