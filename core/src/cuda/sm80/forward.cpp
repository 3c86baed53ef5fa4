// Chooses the forward's tiles, and whether a call needs the kernels that know every part of a mask.
#include "cuda/sm80/forward.h"

#include <algorithm>

#include "cuda/aligned_rows.h"
#include "cuda/sm80/few_keys.h"
#include "cuda/sm80/forward_launch.h"
#include "cuda/sm80/tiles.h"
#include "problem/refusal.h"

namespace attn::cuda::sm80 {
namespace {

constexpr double kLog2E = 1.4426950408889634;

// Whether the plain kernels can copy the tiles of biases as they lie, if there are any.
bool takes_biases(const Problem& p, const DeviceProperties& device) {
  if (!p.bias) return true;
  const int size = static_cast<int>(element_bytes(p.query.dtype));
  const int width = bucket(std::max(p.K, p.Kv), size, false);
  const int64_t bytes = forward_shared_bytes(size, width, false) + forward_bias_bytes(size, width);
  return has_aligned_rows(p.bias, p.query.dtype, p.Mkv) && !p.sequences &&
         bytes <= device.shared_bytes;
}

bool is_extended(const ForwardArguments& arguments, const DeviceProperties& device) {
  const Problem& p = arguments.problem;
  return !arguments.query_is_aligned || !arguments.key_is_aligned || !arguments.value_is_aligned ||
         p.scale <= 0.0 || p.softcap > 0.0 || !takes_biases(p, device) || p.slopes || p.table ||
         p.blocks || p.pages.table || p.dropout.enabled || arguments.keeps_rests;
}

void require_shared_memory(const Problem& p, const DeviceProperties& device) {
  const int size = static_cast<int>(element_bytes(p.query.dtype));
  const auto bytes_of = [&](bool is_extended) {
    const int width = bucket(std::max(p.K, p.Kv), size, is_extended);
    return forward_shared_bytes(size, width, is_extended);
  };
  const int64_t bytes = std::max(bytes_of(false), bytes_of(true));
  if (bytes <= device.shared_bytes) return;
  refuse_unsupported(
      "expected widths whose tiles fit this GPU's %lld bytes of shared memory, got K %lld and Kv "
      "%lld, which take %lld; use a newer GPU or the CPU",
      static_cast<long long>(device.shared_bytes), static_cast<long long>(p.K),
      static_cast<long long>(p.Kv), static_cast<long long>(bytes));
}

void launch_by_position(const ForwardArguments& arguments, int64_t width, void* stream) {
  if (width <= 64) return launch_forward_by_position<64>(arguments, stream);
  launch_forward_by_position<256>(arguments, stream);
}

}  // namespace

size_t forward_workspace(const ForwardProblem& problem, const DeviceProperties& device) {
  require_shared_memory(problem, device);
  return 0;
}

void forward(const ForwardProblem& problem, const DeviceProperties& device, void*, void* stream) {
  require_shared_memory(problem, device);
  const DType dtype = problem.query.dtype;
  const DType tile_dtype = problem.positions ? DType::kFloat32 : dtype;
  const ForwardArguments arguments{
      .problem = problem,
      .query_is_aligned = has_aligned_rows(problem.query, tile_dtype, problem.K),
      .key_is_aligned = has_aligned_rows(problem.key, tile_dtype, problem.K),
      .value_is_aligned = has_aligned_rows(problem.value, tile_dtype, problem.Kv),
      .scale = static_cast<float>(problem.scale * kLog2E),
      .softcap = static_cast<float>(problem.softcap * kLog2E),
      .natural_scale = static_cast<float>(problem.scale),
      .score_factor = static_cast<float>(kLog2E * (problem.bias ? 1.0 : problem.scale)),
      .keeps_rests = keeps_rests(problem)};
  const int64_t width = std::max(problem.K, problem.Kv);
  if (problem.positions) return launch_by_position(arguments, width, stream);
  const bool extended = is_extended(arguments, device);
  switch (bucket(width, static_cast<int>(element_bytes(dtype)), extended)) {
    case 32: return launch_forward<32>(arguments, extended, stream);
    case 64: return launch_forward<64>(arguments, extended, stream);
    case 96: return launch_forward<96>(arguments, extended, stream);
    case 128: return launch_forward<128>(arguments, extended, stream);
    case 192: return launch_forward<192>(arguments, extended, stream);
    default: return launch_forward<256>(arguments, extended, stream);
  }
}

}  // namespace attn::cuda::sm80
