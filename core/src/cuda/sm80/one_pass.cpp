// Which calls the backward in one pass serves, and what it takes of the workspace.
#include "cuda/sm80/one_pass.h"

#include <algorithm>

#include "cuda/aligned_rows.h"
#include "cuda/limits.h"
#include "cuda/sm80/few_keys.h"

namespace attn::cuda::sm80 {
namespace {

int width_of(const Problem& p) { return std::max(p.K, p.Kv) <= 64 ? 64 : 128; }

bool has_served_mask(const Problem& p) {
  return !p.sequences && !p.pages.table && !p.blocks && !p.slopes && !p.table && !p.positions &&
         !p.dropout.enabled && p.softcap == 0.0;
}

// Beside biases of 16 bits there is room for them, beside those of float32 there is none.
bool has_room(const Problem& p, const DeviceProperties& device) {
  const int bytes = static_cast<int>(element_bytes(p.query.dtype)), width = width_of(p);
  const bool takes_biases = bytes == 2;
  const int taken =
      takes_biases ? one_pass_bias_shared_bytes(width) : one_pass_shared_bytes(bytes, width, false);
  return std::max(p.K, p.Kv) <= width && bytes * width <= kOnePassRowBytes &&
         (takes_biases || !p.bias) && taken <= device.shared_bytes;
}

}  // namespace

OnePassBytes one_pass_bytes(const BackwardProblem& p, const DeviceProperties& device) {
  const int width = width_of(p);
  // Its blocks own keys: without any, none would write dQ.
  const bool is_served = p.Mkv > 0 && device.capability >= kWholeCapability && has_served_mask(p) &&
                         has_room(p, device) && !keeps_rests(p);
  if (!is_served) return {};
  const int64_t tiles = (p.Mq + kOnePassQueries - 1) / kOnePassQueries * p.Hq * p.B;
  const int64_t sums = tiles * kOnePassQueries * width;
  return {.turns = tiles * static_cast<int64_t>(sizeof(int32_t)),
          .sums = sums * static_cast<int64_t>(sizeof(float))};
}

bool is_aligned_for_one_pass(const BackwardArguments& a) {
  const BackwardProblem& p = a.problem;
  const DType dtype = p.query.dtype;
  return a.query_is_aligned && a.key_is_aligned && a.value_is_aligned && a.grad_out_is_aligned &&
         (!p.bias || has_aligned_rows(p.bias, dtype, p.Mkv)) &&
         (!a.stores_grad_bias || has_aligned_rows(p.grad_bias, dtype, p.Mkv));
}

bool sums_bias_in_one_pass(const BackwardArguments& a) {
  const BackwardProblem& p = a.problem;
  return a.is_one_pass && p.grad_bias && !a.stores_grad_bias && !p.grad_bias_sums_m &&
         !p.grad_bias_sums_n && has_aligned_rows(p.grad_bias, p.query.dtype, p.Mkv);
}

void launch_one_pass_bias(const BackwardArguments& a, void* stream) {
  if (width_of(a.problem) == 64) return launch_one_pass_bias_64(a, stream);
  launch_one_pass_bias_128(a, stream);
}

void launch_one_pass(const OnePassArguments& a, void* stream) {
  const BackwardProblem& p = a.backward.problem;
  if (!p.grad_query && !p.grad_key && !p.grad_value && !a.backward.stores_grad_bias) return;
  if (width_of(p) == 64) return launch_one_pass_64(a, stream);
  launch_one_pass_128(a, stream);
}

}  // namespace attn::cuda::sm80
