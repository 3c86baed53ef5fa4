// Chooses the forward's tiles, and whether a call needs the kernels that know every part of a mask.
#include "cuda/sm80/forward.h"

#include <algorithm>

#include "cuda/sm80/forward_launch.h"
#include "cuda/sm80/tiles.h"
#include "problem/refusal.h"

namespace attn::cuda::sm80 {
namespace {

constexpr int64_t kChunkBytes = 16;

bool has_aligned_rows(const HeadRows& x, int64_t width) {
  const auto is_whole = [&](int64_t elements) {
    return elements * element_bytes(x.dtype) % kChunkBytes == 0;
  };
  return reinterpret_cast<uintptr_t>(x.data) % kChunkBytes == 0 && is_whole(width) &&
         is_whole(x.stride_b) && is_whole(x.stride_m) && is_whole(x.stride_h);
}

bool is_extended(const ForwardArguments& arguments) {
  const Problem& p = arguments.problem;
  return !arguments.query_is_aligned || !arguments.key_is_aligned || !arguments.value_is_aligned ||
         p.scale <= 0.0 || p.softcap > 0.0 || p.bias || p.slopes || p.table || p.blocks ||
         p.pages.table || p.dropout.enabled;
}

void require_shared_memory(const Problem& p, const DeviceProperties& device) {
  const int width = bucket(std::max(p.K, p.Kv));
  const int size = static_cast<int>(element_bytes(p.query.dtype));
  const int64_t bytes =
      std::max(forward_shared_bytes(size, width, false), forward_shared_bytes(size, width, true));
  if (bytes <= device.shared_bytes) return;
  refuse_unsupported(
      "expected widths whose tiles fit this GPU's %lld bytes of shared memory, got K %lld and Kv "
      "%lld, which take %lld; use a newer GPU or the CPU",
      static_cast<long long>(device.shared_bytes), static_cast<long long>(p.K),
      static_cast<long long>(p.Kv), static_cast<long long>(bytes));
}

}  // namespace

size_t forward_workspace(const ForwardProblem& problem, const DeviceProperties& device) {
  require_shared_memory(problem, device);
  return 0;
}

void forward(const ForwardProblem& problem, const DeviceProperties& device, void*, void* stream) {
  require_shared_memory(problem, device);
  const ForwardArguments arguments{.problem = problem,
                                   .query_is_aligned = has_aligned_rows(problem.query, problem.K),
                                   .key_is_aligned = has_aligned_rows(problem.key, problem.K),
                                   .value_is_aligned = has_aligned_rows(problem.value, problem.Kv)};
  const bool extended = is_extended(arguments);
  switch (bucket(std::max(problem.K, problem.Kv))) {
    case 32: return launch_forward<32>(arguments, extended, stream);
    case 64: return launch_forward<64>(arguments, extended, stream);
    case 96: return launch_forward<96>(arguments, extended, stream);
    case 128: return launch_forward<128>(arguments, extended, stream);
    case 192: return launch_forward<192>(arguments, extended, stream);
    default: return launch_forward<256>(arguments, extended, stream);
  }
}

}  // namespace attn::cuda::sm80
