// Runs calls of the core as operators do: where torch would, in scratch of their own.
#pragma once

#include "attn/attn.h"
#include "executor.h"
#include "expect.h"
#include "scratch.h"

namespace attn_torch {

inline void check(attn_status status, const attn_error& error) {
  expect(status == ATTN_OK, error.message);
}

// Validates a call by its workspace query, and returns the bytes it needs.
template <class Args, class Workspace>
size_t validate(const Args& args, Workspace* workspace) {
  attn_error error;
  size_t bytes = 0;
  check(workspace(&args, &bytes, &error), error);
  return bytes;
}

template <class Args, class Call>
void run_validated(Args& args, Call* call, Scratch& scratch) {
  attn_error error;
  args.workspace = scratch.data();
  args.workspace_bytes = scratch.bytes();
  check(call(&args, &error), error);
}

// Both, on the device of `tensor`. Throws with the core's message.
template <class Args, class Workspace, class Call>
void run(Args& args, const Tensor& tensor, Workspace* workspace, Call* call) {
  const DeviceOfCall device(tensor);
  const attn_exec exec = device.executor();
  args.exec = &exec;
  Scratch scratch(validate(args, workspace), tensor);
  run_validated(args, call, scratch);
}

}  // namespace attn_torch
