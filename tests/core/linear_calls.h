// One linear layer with everything it needs, ready to be run or spoilt.
#pragma once

#include "calls.h"

struct LinearShape {
  int64_t N = 3, E = 8, F = 6;
};

// Members may be edited before a run.
struct LinearCall {
  Array x_array, weight_array, bias_array, out_array;
  EditableTensor x, weight, bias, out;
  attn_exec exec = ATTN_EXEC_INIT;
  attn_linear_args args = ATTN_LINEAR_INIT;
  GuardedBytes workspace;
  attn_error error{};

  LinearCall(attn_dtype dtype, const LinearShape& s)
      : x_array(Array::random(dtype, {s.N, s.E}, 1)),
        weight_array(Array::random(dtype, {s.F, s.E}, 2)),
        bias_array(Array::random(dtype, {s.F}, 3)),
        out_array(Array(dtype, {s.N, s.F})),
        x(x_array),
        weight(weight_array),
        bias(bias_array),
        out(out_array) {
    out_array.fill(kUnwritten);
    exec.num_threads = 1;
    args.x = x.get();
    args.weight = weight.get();
    args.bias = bias.get();
    args.out = out.get();
    args.exec = &exec;
  }

  attn_status run() {
    size_t bytes = 0;
    const attn_status status = attn_linear_workspace(&args, &bytes, &error);
    if (status != ATTN_OK) return status;
    workspace.assign(bytes, kGarbage);
    args.workspace = workspace.data();
    args.workspace_bytes = bytes;
    return attn_linear(&args, &error);
  }
};
