// Runs calls of the core as operators do: where torch would, in scratch of their own.
#pragma once

#include <torch/csrc/stable/library.h>

#include "attn/attn.h"
#include "executor.h"
#include "scratch.h"

namespace attn_torch {

inline void check(attn_status status, const attn_error& error) {
  STD_TORCH_CHECK(status == ATTN_OK, error.message);
}

// Runs a filled-in call on the device of `tensor` after its workspace query. Throws with the core's
// message.
template <class Args, class Workspace, class Call>
void run(Args& args, const Tensor& tensor, Workspace* workspace, Call* call) {
  const DeviceOfCall device(tensor);
  const attn_exec exec = device.executor();
  args.exec = &exec;
  attn_error error;
  size_t scratch_bytes = 0;
  check(workspace(&args, &scratch_bytes, &error), error);
  Scratch scratch(scratch_bytes, tensor);
  args.workspace = scratch.data();
  args.workspace_bytes = scratch.bytes();
  check(call(&args, &error), error);
}

}  // namespace attn_torch
