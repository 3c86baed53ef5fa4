// Queues what finds the statistics of query rows.
#include "cuda/launch.cuh"
#include "cuda/sm80/backward_instances.h"
#include "cuda/sm80/row_statistics.cuh"

namespace attn::cuda::sm80 {
namespace {

template <class Element>
void launch_close_look(const BackwardArguments& a, void* stream) {
  const BackwardProblem& p = a.problem;
  launch(&close_look_kernel<Element>, {.x = tiles_of<Element, kWidestTile>(p.Mq) * p.Hq * p.B},
         GradientShape<Element, kWidestTile>::kThreads, TileMemory<Element, kWidestTile>::kBytes,
         stream, a);
}

}  // namespace

void launch_row_statistics(const BackwardArguments& a, void* stream) {
  const BackwardProblem& p = a.problem;
  constexpr int64_t kRowsOfBlock = kRowStatisticsThreads / kWarpLanes;
  launch(&row_statistics_kernel<kRowStatisticsThreads>,
         {.x = (p.B * p.Hq * p.Mq + kRowsOfBlock - 1) / kRowsOfBlock}, kRowStatisticsThreads, 0,
         stream, a);
  switch (p.query.dtype) {
    case DType::kFloat16: return launch_close_look<Half>(a, stream);
    case DType::kBFloat16: return launch_close_look<BFloat16>(a, stream);
    default: return launch_close_look<float>(a, stream);
  }
}

}  // namespace attn::cuda::sm80
