// Chooses the device of a step; on the CPU it is an append and an attention over the rings.
#include "dispatch/step.h"

#include "cpu/ring.h"
#include "dispatch/attention.h"
#include "dispatch/cuda.h"
#include "dispatch/workspace.h"

namespace attn {
namespace {

ForwardCall attention_of(const StepCall& call) {
  return {.problem = call.problem.attention, .resources = call.resources};
}

}  // namespace

size_t step_workspace(const StepCall& call) {
  if (call.resources.device.is_cuda()) return cuda::step_workspace(call);
  ForwardCall attention = attention_of(call);
  char anywhere;  // a bias never lessens what attention needs, so plan for one
  attention.problem.bias = cpu::slot_bias(call.problem, &anywhere);
  return with_room_to_align(cpu::slot_bias_bytes(call.problem) + forward_workspace(attention));
}

void step(const StepCall& call) {
  if (call.resources.device.is_cuda()) return cuda::step(call);
  void* memory = aligned_workspace(call.resources, step_workspace(call));
  cpu::append(call.problem);
  ForwardCall attention = attention_of(call);
  if (!cpu::sees_every_slot(call.problem)) {
    attention.problem.bias = cpu::slot_bias(call.problem, memory);
    cpu::fill(attention.problem.bias, call.problem);
  }
  const size_t used = cpu::slot_bias_bytes(call.problem);
  attention.resources.workspace = static_cast<char*>(memory) + used;
  attention.resources.workspace_bytes = forward_workspace(attention);
  forward(attention);
}

}  // namespace attn
