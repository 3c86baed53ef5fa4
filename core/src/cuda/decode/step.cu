// A step on a GPU: an append, a bias that hides what the query does not see, and attention over all
// slots. The host reads none of it, so that it can be captured.
#include "cuda/attention.h"
#include "cuda/decode/step.h"
#include "cuda/decode/step_kernels.cuh"
#include "cuda/launch.cuh"

namespace attn::cuda::decode {
namespace {

StepArguments arguments_of(const StepProblem& p, void* memory) {
  const int64_t slots = p.attention.Mkv, heads = p.bias ? p.bias_heads : 1;
  return {.problem = p,
          .slot_bias = {.data = static_cast<char*>(memory),
                        .dtype = p.bias ? p.bias.dtype : DType::kBool,
                        .stride_b = heads * slots,
                        .stride_h = heads > 1 ? slots : 0,
                        .stride_m = 0,
                        .stride_n = 1},
          .slot_bias_heads = heads};
}

int64_t slot_bias_elements(const StepArguments& a) {
  return a.problem.attention.B * a.slot_bias_heads * a.problem.attention.Mkv;
}

size_t slot_bias_bytes(const StepArguments& a) {
  const int64_t bytes = slot_bias_elements(a) * element_bytes(a.slot_bias.dtype);
  return static_cast<size_t>((bytes + 63) / 64 * 64);
}

ForwardProblem attention_over_slots(const StepArguments& a) {
  ForwardProblem attention = a.problem.attention;
  attention.bias = a.slot_bias;
  return attention;
}

}  // namespace

size_t step_workspace(const StepProblem& problem, const DeviceProperties& device) {
  char anywhere;  // for the attention to know of its bias
  const StepArguments a = arguments_of(problem, &anywhere);
  return slot_bias_bytes(a) + cuda::forward_workspace(attention_over_slots(a), device);
}

void step(const StepProblem& problem, const DeviceProperties& device, void* workspace,
          void* stream) {
  step_workspace(problem, device);  // refuses what no kernel does before the rings are written
  const StepArguments a = arguments_of(problem, workspace);
  launch(&append_kernel<kStepThreads>, {.x = problem.attention.B}, kStepThreads, 0, stream, a);
  launch(&slot_bias_kernel<kStepThreads>,
         {.x = (slot_bias_elements(a) + kStepThreads - 1) / kStepThreads}, kStepThreads, 0, stream,
         a);
  char* const rest = static_cast<char*>(workspace) + slot_bias_bytes(a);
  cuda::forward(attention_over_slots(a), device, rest, stream);
}

}  // namespace attn::cuda::decode
