// A step on a GPU: an append, a bias that hides what the query does not see, and attention over all
// slots. The host reads none of it, so that it can be captured.
#include "cuda/attention.h"
#include "cuda/decode/step.h"
#include "cuda/decode/step_kernels.cuh"
#include "cuda/launch.cuh"

namespace attn::cuda::decode {
namespace {

size_t padded(int64_t bytes) { return static_cast<size_t>((bytes + 63) / 64 * 64); }

StepArguments arguments_of(const StepProblem& p, char* memory) {
  return {.problem = p,
          .attending_query = p.query_that_attends(memory),
          .slot_bias = p.slot_bias(memory + p.waited_query_bytes())};
}

int64_t slot_bias_elements(const StepArguments& a) {
  return a.problem.attention.B * a.problem.slot_bias_heads() * a.problem.attention.Mkv;
}

size_t own_bytes(const StepArguments& a) {
  return a.problem.waited_query_bytes() +
         padded(slot_bias_elements(a) * element_bytes(a.slot_bias.dtype));
}

ForwardProblem attention_over_slots(const StepArguments& a) {
  ForwardProblem attention = a.problem.attention;
  attention.query = a.attending_query;
  attention.bias = a.slot_bias;
  return attention;
}

}  // namespace

size_t step_workspace(const StepProblem& problem, const DeviceProperties& device) {
  char anywhere;  // for the attention to know of its bias, and how its queries lie
  const StepArguments a = arguments_of(problem, &anywhere);
  return own_bytes(a) + cuda::forward_workspace(attention_over_slots(a), device);
}

void step(const StepProblem& problem, const DeviceProperties& device, void* workspace,
          void* stream) {
  step_workspace(problem, device);  // refuses what no kernel does before the rings are written
  char* const memory = static_cast<char*>(workspace);
  const StepArguments a = arguments_of(problem, memory);
  launch(&append_kernel<kStepThreads>, {.x = problem.attention.B}, kStepThreads, 0, stream, a);
  launch(&slot_bias_kernel<kStepThreads>,
         {.x = (slot_bias_elements(a) + kStepThreads - 1) / kStepThreads}, kStepThreads, 0, stream,
         a);
  cuda::forward(attention_over_slots(a), device, memory + own_bytes(a), stream);
}

}  // namespace attn::cuda::decode
