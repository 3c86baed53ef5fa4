// One step with everything it needs, ready to be taken again and again, or spoilt.
#pragma once

#include <vector>

#include "calls.h"

struct StepShape {
  int64_t B = 3, R = 5, L = 4, Hq = 4, Hkv = 2, K = 8, Kv = 6;
  int64_t D = 0;  // queries that wait; 0: none do
};

struct StepArrays {
  Array query, key, value, key_ring, value_ring, position, padding, padding_ring, active, bias;
  Array out, lse, query_ring, attending_query;

  StepArrays(attn_dtype dtype, const StepShape& s) {
    query = Array(dtype, {s.B, 1, s.Hq, s.K});
    key = Array(dtype, {s.B, 1, s.Hkv, s.K});
    value = Array(dtype, {s.B, 1, s.Hkv, s.Kv});
    key_ring = Array(dtype, {s.B, s.R, s.Hkv, s.K});
    value_ring = Array(dtype, {s.B, s.R, s.Hkv, s.Kv});
    // What was never written must never be read.
    key_ring.fill(kGarbage);
    value_ring.fill(kGarbage);
    position = Array(kInt64, {s.B});
    out = Array(dtype, {s.B, 1, s.Hq, s.Kv});
    lse = Array(same(dtype, kFloat64) ? kFloat64 : kFloat32, {s.B, s.Hq, 1});
    if (s.D > 0) query_ring = Array(dtype, {s.B, s.D, s.Hq, s.K});
  }
};

// Members may be edited before a run.
struct StepCall {
  StepArrays arrays;
  EditableTensor query, key, value, key_ring, value_ring, position, padding, padding_ring, active,
      bias, out, lse, query_ring, attending_query;
  attn_exec exec = ATTN_EXEC_INIT;
  attn_step_args args = ATTN_STEP_INIT;
  GuardedBytes workspace;
  attn_error error{};

  StepCall(StepArrays given, int64_t window)
      : arrays(std::move(given)),
        query(arrays.query),
        key(arrays.key),
        value(arrays.value),
        key_ring(arrays.key_ring),
        value_ring(arrays.value_ring),
        position(arrays.position),
        padding(arrays.padding),
        padding_ring(arrays.padding_ring),
        active(arrays.active),
        bias(arrays.bias),
        out(arrays.out),
        lse(arrays.lse),
        query_ring(arrays.query_ring),
        attending_query(arrays.attending_query) {
    exec.num_threads = 1;
    args.query = query.get();
    args.key = key.get();
    args.value = value.get();
    args.key_ring = key_ring.get();
    args.value_ring = value_ring.get();
    args.position = position.get();
    args.window = window;
    args.padding = Calls::if_exists(padding);
    args.padding_ring = Calls::if_exists(padding_ring);
    args.active = Calls::if_exists(active);
    args.bias = Calls::if_exists(bias);
    args.out = out.get();
    args.lse = lse.get();
    args.query_ring = Calls::if_exists(query_ring);
    args.attending_query = Calls::if_exists(attending_query);
    args.exec = &exec;
  }

  attn_status run() {
    size_t bytes = 0;
    const attn_status status = attn_step_workspace(&args, &bytes, &error);
    if (status != ATTN_OK) return status;
    workspace.assign(bytes, kGarbage);
    args.workspace = workspace.data();
    args.workspace_bytes = bytes;
    return attn_step(&args, &error);
  }

  std::vector<Array*> outputs() {
    return {&arrays.key_ring, &arrays.value_ring, &arrays.position,   &arrays.padding_ring,
            &arrays.out,      &arrays.lse,        &arrays.query_ring, &arrays.attending_query};
  }
};
