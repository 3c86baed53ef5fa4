// Which calls a GPU's kernels serve, and which of them serves each.
#include "cuda/attention.h"

#include <algorithm>

#include "cuda/decode/decode.h"
#include "cuda/limits.h"
#include "cuda/sm80/backward.h"
#include "cuda/sm80/forward.h"
#include "problem/refusal.h"

namespace attn::cuda {
namespace {

void require_served(const Problem& problem, const DeviceProperties& device) {
  if (problem.query.dtype == DType::kFloat64) {
    refuse_unsupported(
        "expected float32, bfloat16 or float16 on a GPU, got float64; convert the tensors or move "
        "them to the CPU");
  }
  if (problem.K > kWidestRow || problem.Kv > kWidestRow) {
    refuse_unsupported(
        "expected K and Kv of at most %lld on a GPU, got %lld and %lld; split the heads or move "
        "the tensors to the CPU",
        static_cast<long long>(kWidestRow), static_cast<long long>(problem.K),
        static_cast<long long>(problem.Kv));
  }
  if (std::max(problem.Mq, problem.most_keys) >= kMostRows || problem.Mkv >= kMostKeyRows) {
    refuse_unsupported(
        "expected fewer than 2^29 queries and keys of a sequence, and 2^32 keys in all, on a GPU, "
        "got %lld, %lld and %lld; split them",
        static_cast<long long>(problem.Mq), static_cast<long long>(problem.most_keys),
        static_cast<long long>(problem.Mkv));
  }
  if (device.capability < kLeastCapability) {
    refuse_unsupported("expected a GPU of compute capability 7.5 or more, got %d.%d; use the CPU",
                       device.capability / 10, device.capability % 10);
  }
  if (device.capability < kWholeCapability && problem.query.dtype != DType::kFloat16) {
    refuse_unsupported(
        "expected float16 on a GPU of compute capability 7.5, got another dtype; convert the "
        "tensors or use a newer GPU");
  }
  if (device.capability < kWholeCapability && problem.positions) {
    refuse_unsupported(
        "expected no positions on a GPU of compute capability 7.5, got some; use a newer GPU or "
        "the CPU");
  }
}

}  // namespace

size_t forward_workspace(const ForwardProblem& problem, const DeviceProperties& device) {
  require_served(problem, device);
  if (decode::serves(problem, device)) return decode::forward_workspace(problem);
  return sm80::forward_workspace(problem, device);
}

void forward(const ForwardProblem& problem, const DeviceProperties& device, void* workspace,
             void* stream) {
  require_served(problem, device);
  if (decode::serves(problem, device)) return decode::forward(problem, workspace, stream);
  sm80::forward(problem, device, workspace, stream);
}

size_t backward_workspace(const BackwardProblem& problem, const DeviceProperties& device) {
  require_served(problem, device);
  return sm80::backward_workspace(problem, device);
}

void backward(const BackwardProblem& problem, const DeviceProperties& device, void* workspace,
              void* stream) {
  require_served(problem, device);
  sm80::backward(problem, device, workspace, stream);
}

}  // namespace attn::cuda
