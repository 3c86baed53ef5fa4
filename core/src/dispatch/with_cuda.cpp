// Hands calls on CUDA tensors to the kernels: finds the device, checks the workspace.
#include "cuda/attention.h"
#include "cuda/decode/merge.h"
#include "cuda/decode/step.h"
#include "cuda/runtime.h"
#include "dispatch/capabilities.h"
#include "dispatch/cuda.h"
#include "dispatch/workspace.h"

namespace attn::cuda {
namespace {

DeviceProperties device_of(const Resources& resources) {
  return device_properties(resources.device.id);
}

}  // namespace

size_t forward_workspace(const ForwardCall& call) {
  return with_room_to_align(forward_workspace(call.problem, device_of(call.resources)));
}

void forward(const ForwardCall& call) {
  void* workspace = aligned_workspace(call.resources, forward_workspace(call));
  const DeviceGuard guard(call.resources.device.id);
  forward(call.problem, device_of(call.resources), workspace, call.resources.exec.stream);
}

size_t backward_workspace(const BackwardCall& call) {
  return with_room_to_align(backward_workspace(call.problem, device_of(call.resources)));
}

void backward(const BackwardCall& call) {
  void* workspace = aligned_workspace(call.resources, backward_workspace(call));
  const DeviceGuard guard(call.resources.device.id);
  backward(call.problem, device_of(call.resources), workspace, call.resources.exec.stream);
}

void merge_forward(const MergeForwardCall& call) {
  device_of(call.resources);  // refuses one that is not there
  const DeviceGuard guard(call.resources.device.id);
  decode::merge_forward(call.problem, call.resources.exec.stream);
}

void merge_backward(const MergeBackwardCall& call) {
  device_of(call.resources);  // likewise
  const DeviceGuard guard(call.resources.device.id);
  decode::merge_backward(call.problem, call.resources.exec.stream);
}

size_t step_workspace(const StepCall& call) {
  return with_room_to_align(decode::step_workspace(call.problem, device_of(call.resources)));
}

void step(const StepCall& call) {
  void* workspace = aligned_workspace(call.resources, step_workspace(call));
  const DeviceGuard guard(call.resources.device.id);
  decode::step(call.problem, device_of(call.resources), workspace, call.resources.exec.stream);
}

}  // namespace attn::cuda

bool attn::has_cuda() { return true; }

int attn::cuda_device_count() { return cuda::device_count(); }
