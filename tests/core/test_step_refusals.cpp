// Every way to break the contract of attn/step.h: the status, the argument named, nothing written.
#include <cstddef>
#include <cstring>

#include "check.h"
#include "step_calls.h"

namespace {

struct Case {
  const char* expected;  // what the message must contain
  void (*spoil)(StepCall& call);
  attn_status status = ATTN_ERROR_INVALID_ARGUMENT;
};

const Case kCases[] = {
    {"args's struct_size", [](StepCall& c) { c.args.struct_size = 8; }},
    {"exec's num_threads >= 0, got -1", [](StepCall& c) { c.exec.num_threads = -1; }},
    {"scale to be finite", [](StepCall& c) { c.args.scale = -HUGE_VAL; }},
    {"window in [1, R], R=5 slots, got 0", [](StepCall& c) { c.args.window = 0; }},
    {"window in [1, R], R=5 slots, got 6", [](StepCall& c) { c.args.window = 6; }},
    // Missing tensors
    {"expected query to be a tensor", [](StepCall& c) { c.args.query = nullptr; }},
    {"expected key to be a tensor", [](StepCall& c) { c.args.key = nullptr; }},
    {"expected value to be a tensor", [](StepCall& c) { c.args.value = nullptr; }},
    {"expected key_ring to be a tensor", [](StepCall& c) { c.args.key_ring = nullptr; }},
    {"expected value_ring to be a tensor", [](StepCall& c) { c.args.value_ring = nullptr; }},
    {"expected position to be a tensor", [](StepCall& c) { c.args.position = nullptr; }},
    {"expected out to be a tensor", [](StepCall& c) { c.args.out = nullptr; }},
    {"expected padding_ring to be a tensor with padding",
     [](StepCall& c) { c.args.padding_ring = nullptr; }},
    {"expected query_ring to be a tensor with attending_query",
     [](StepCall& c) { c.args.query_ring = nullptr; }},
    // Dtypes
    {"key_ring's dtype to be float32, got bfloat16",
     [](StepCall& c) { c.key_ring.tensor.dtype = kBFloat16; }},
    {"value's dtype to be float32, got float16",
     [](StepCall& c) { c.value.tensor.dtype = kFloat16; }},
    {"position's dtype to be int64, got int32",
     [](StepCall& c) { c.position.tensor.dtype = kInt32; }},
    {"padding's dtype to be bool", [](StepCall& c) { c.padding.tensor.dtype = kInt32; }},
    {"padding_ring's dtype to be bool, got float32",
     [](StepCall& c) { c.padding_ring.tensor.dtype = kFloat32; }},
    {"active's dtype to be bool", [](StepCall& c) { c.active.tensor.dtype = kInt64; }},
    {"bias's dtype to be float32 or bool", [](StepCall& c) { c.bias.tensor.dtype = kFloat64; }},
    {"lse's dtype to be float32", [](StepCall& c) { c.lse.tensor.dtype = kFloat64; }},
    {"query_ring's dtype to be float32, got float16",
     [](StepCall& c) { c.query_ring.tensor.dtype = kFloat16; }},
    {"attending_query's dtype to be float32, got float64",
     [](StepCall& c) { c.attending_query.tensor.dtype = kFloat64; }},
    // Devices
    {"value_ring on the device of query",
     [](StepCall& c) { c.value_ring.tensor.device_type = ATTN_DEVICE_CUDA; }},
    {"; move the",
     [](StepCall& c) {
       for (EditableTensor* each : {&c.query, &c.key, &c.value, &c.key_ring, &c.value_ring,
                                    &c.position, &c.padding, &c.padding_ring, &c.active, &c.bias,
                                    &c.out, &c.lse, &c.query_ring, &c.attending_query}) {
         each->tensor.device_type = ATTN_DEVICE_CUDA;
       }
     },
     ATTN_ERROR_UNSUPPORTED},
    // Extents and strides
    {"query of one step, got 2 rows", [](StepCall& c) { c.query.shape[1] = 2; }},
    {"key's extent B (axis 0) to be 3 as in query, got 2", [](StepCall& c) { c.key.shape[0] = 2; }},
    {"Hq=4, Hkv=3",
     [](StepCall& c) {
       for (EditableTensor* each : {&c.key, &c.value}) each->shape[2] = 3;
     }},
    {"key_ring's extent Hkv (axis 2) to be 2 as in key, got 1",
     [](StepCall& c) { c.key_ring.shape[2] = 1; }},
    {"value_ring's extent R (axis 1) to be 5 as in key_ring, got 4",
     [](StepCall& c) { c.value_ring.shape[1] = 4; }},
    {"value's last stride to be 1, got 2", [](StepCall& c) { c.value.strides[3] = 2; }},
    {"value_ring's elements not to overlap", [](StepCall& c) { c.value_ring.strides[0] = 0; }},
    {"position's elements not to overlap", [](StepCall& c) { c.position.strides[0] = 0; }},
    {"position to have 1 axes, got 2", [](StepCall& c) { c.position.tensor.ndim = 2; }},
    {"padding_ring's extent R (axis 1) to be 5 as in key_ring, got 4",
     [](StepCall& c) { c.padding_ring.shape[1] = 4; }},
    {"active's extent B (axis 0) to be 3", [](StepCall& c) { c.active.shape[0] = 1; }},
    {"bias's extent L (axis 3) to be 4 or 1 as in window, got 5",
     [](StepCall& c) { c.bias.shape[3] = 5; }},
    {"out's extent Kv (axis 3)", [](StepCall& c) { c.out.shape[3] = 5; }},
    {"query_ring's extent B (axis 0) to be 3 as in query, got 2",
     [](StepCall& c) { c.query_ring.shape[0] = 2; }},
    {"query_ring's extent D (axis 1) to be at least 1, got 0",
     [](StepCall& c) { c.query_ring.shape[1] = 0; }},
    {"query_ring's extent Hq (axis 2) to be 4 as in query, got 2",
     [](StepCall& c) { c.query_ring.shape[2] = 2; }},
    {"query_ring's extent K (axis 3) to be 8 as in query, got 6",
     [](StepCall& c) { c.query_ring.shape[3] = 6; }},
    {"query_ring to have 4 axes, got 3", [](StepCall& c) { c.query_ring.tensor.ndim = 3; }},
    {"query_ring's elements not to overlap", [](StepCall& c) { c.query_ring.strides[1] = 0; }},
    {"attending_query's extent Mq (axis 1) to be 1 as in query, got 2",
     [](StepCall& c) { c.attending_query.shape[1] = 2; }},
    // Data
    {"position in [0, 2^62), got -1 in stream 2",
     [](StepCall& c) { c.arrays.position.set(2, -1); }},
    {"position's data", [](StepCall& c) { c.position.tensor.data = nullptr; }},
    {"value_ring apart from key_ring",
     [](StepCall& c) { c.value_ring.tensor.data = c.key_ring.tensor.data; }},
    {"query_ring's data", [](StepCall& c) { c.query_ring.tensor.data = nullptr; }},
    {"query_ring apart from query",
     [](StepCall& c) { c.query_ring.tensor.data = c.query.tensor.data; }},
    {"attending_query apart from query_ring",
     [](StepCall& c) { c.attending_query.tensor.data = c.query_ring.tensor.data; }},
    {"key_ring apart from key", [](StepCall& c) { c.key_ring.tensor.data = c.key.tensor.data; }},
};

StepCall make_call() {
  const StepShape shape{.D = 2};
  StepArrays arrays(kFloat32, shape);
  arrays.padding = Array(kBool, {shape.B});
  arrays.padding_ring = Array(kBool, {shape.B, shape.R});
  arrays.active = Array(kBool, {shape.B});
  arrays.bias = Array(kFloat32, {1, 1, 1, shape.L});
  arrays.attending_query = Array(kFloat32, arrays.query.shape());
  return StepCall(std::move(arrays), shape.L);
}

std::vector<GuardedBytes> written_bytes(StepCall& call) {
  std::vector<GuardedBytes> bytes;
  for (Array* array : call.outputs()) bytes.push_back(array->bytes());
  return bytes;
}

void run_case(const Case& expected) {
  StepCall call = make_call();
  expected.spoil(call);
  const std::vector<GuardedBytes> before = written_bytes(call);
  const attn_status status = call.run();
  CHECK_IN(expected.expected, status == expected.status);
  CHECK_IN(call.error.message, std::strstr(call.error.message, expected.expected) != nullptr);
  CHECK_IN(call.error.message, std::strncmp(call.error.message, "attn_step", 9) == 0);
  CHECK_IN(expected.expected, before == written_bytes(call));
}

// A workspace that is missing or too small is noticed before a ring is written.
void run_workspace() {
  StepCall call = make_call();
  const std::vector<GuardedBytes> before = written_bytes(call);
  size_t bytes = 0;
  CHECK(attn_step_workspace(&call.args, &bytes, &call.error) == ATTN_OK);
  CHECK(attn_step(&call.args, &call.error) == ATTN_ERROR_INVALID_ARGUMENT);
  CHECK_IN(call.error.message, std::strstr(call.error.message, "expected a workspace of"));
  call.workspace.assign(bytes, kGarbage);
  call.args.workspace = call.workspace.data();
  call.args.workspace_bytes = bytes - 1;
  CHECK(attn_step(&call.args, &call.error) == ATTN_ERROR_INVALID_ARGUMENT);
  CHECK_IN(call.error.message, std::strstr(call.error.message, "workspace_bytes >="));
  CHECK(before == written_bytes(call));
  CHECK(attn_step_workspace(&call.args, nullptr, nullptr) == ATTN_ERROR_INVALID_ARGUMENT);
}

}  // namespace

// Queries that have waited attend from the workspace, unless the caller has a place for them.
void run_query_workspace() {
  StepCall call = make_call();
  const auto bytes_needed = [&] {
    size_t bytes = 0;
    CHECK(attn_step_workspace(&call.args, &bytes, &call.error) == ATTN_OK);
    return bytes;
  };
  const size_t with_place = bytes_needed();
  call.args.attending_query = nullptr;
  CHECK(bytes_needed() >= with_place + call.arrays.query.bytes().size());
  call.args.query_ring = nullptr;
  CHECK(bytes_needed() == with_place);
}

int main() {
  for (const Case& expected : kCases) run_case(expected);
  run_workspace();
  run_query_workspace();
  CHECK(attn_step(nullptr, nullptr) == ATTN_ERROR_INVALID_ARGUMENT);
  return check::outcome();
}
