// Stands in for the CUDA kernels in a build without them.
#include "dispatch/capabilities.h"
#include "dispatch/cuda.h"
#include "problem/refusal.h"

namespace attn::cuda {
namespace {

[[noreturn]] void refuse() {
  refuse_unsupported(
      "expected tensors on the CPU, got CUDA tensors and no CUDA in this build; move them");
}

}  // namespace

size_t forward_workspace(const ForwardCall&) { refuse(); }
void forward(const ForwardCall&) { refuse(); }
size_t backward_workspace(const BackwardCall&) { refuse(); }
void backward(const BackwardCall&) { refuse(); }
void merge_forward(const MergeForwardCall&) { refuse(); }
void merge_backward(const MergeBackwardCall&) { refuse(); }
size_t step_workspace(const StepCall&) { refuse(); }
void step(const StepCall&) { refuse(); }

}  // namespace attn::cuda

bool attn::has_cuda() { return false; }

int attn::cuda_device_count() { return 0; }
