// Chooses the device of a step; on the CPU it is an append and an attention over the rings.
// The workspace holds queries that have waited, the bias of the slots, and what attention needs.
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
  attention.problem.query = call.problem.query_that_attends(&anywhere);
  attention.problem.bias = call.problem.slot_bias(&anywhere);
  return with_room_to_align(call.problem.waited_query_bytes() + cpu::slot_bias_bytes(call.problem) +
                            forward_workspace(attention));
}

void step(const StepCall& call) {
  if (call.resources.device.is_cuda()) return cuda::step(call);
  char* memory = static_cast<char*>(aligned_workspace(call.resources, step_workspace(call)));
  ForwardCall attention = attention_of(call);
  attention.problem.query = call.problem.query_that_attends(memory);
  memory += call.problem.waited_query_bytes();
  if (call.problem.query_ring) cpu::exchange(attention.problem.query, call.problem);
  cpu::append(call.problem);
  if (!cpu::sees_every_slot(call.problem)) {
    attention.problem.bias = call.problem.slot_bias(memory);
    cpu::fill(attention.problem.bias, call.problem);
  }
  attention.resources.workspace = memory + cpu::slot_bias_bytes(call.problem);
  attention.resources.workspace_bytes = forward_workspace(attention);
  forward(attention);
}

}  // namespace attn
