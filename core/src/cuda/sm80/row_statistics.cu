// Queues what finds the statistics of query rows.
#include "cuda/launch.cuh"
#include "cuda/sm80/backward_instances.h"
#include "cuda/sm80/row_statistics.cuh"

namespace attn::cuda::sm80 {

void launch_row_statistics(const BackwardArguments& a, void* stream) {
  const BackwardProblem& p = a.problem;
  constexpr int64_t kRowsOfBlock = kRowStatisticsThreads / kWarpLanes;
  launch(&row_statistics_kernel<kRowStatisticsThreads>,
         {.x = (p.B * p.Hq * p.Mq + kRowsOfBlock - 1) / kRowsOfBlock}, kRowStatisticsThreads, 0,
         stream, a);
  launch(&close_look_kernel<RareShape::kThreads>, {.x = tiles_of<RareShape>(p.Mq) * p.Hq * p.B},
         RareShape::kThreads, RareMemory::kBytes, stream, a);
}

}  // namespace attn::cuda::sm80
