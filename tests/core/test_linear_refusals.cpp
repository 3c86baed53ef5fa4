// Every way to break the contract of attn/linear.h: the status, the argument named, nothing
// written.
#include <cstring>

#include "check.h"
#include "linear_calls.h"

namespace {

struct Case {
  const char* expected;  // what the message must contain
  void (*spoil)(LinearCall& call);
  attn_status status = ATTN_ERROR_INVALID_ARGUMENT;
};

const Case kCases[] = {
    {"args's struct_size", [](LinearCall& c) { c.args.struct_size = 8; }},
    {"exec's num_threads >= 0, got -1", [](LinearCall& c) { c.exec.num_threads = -1; }},
    {"expected x to be a tensor", [](LinearCall& c) { c.args.x = nullptr; }},
    {"expected weight to be a tensor", [](LinearCall& c) { c.args.weight = nullptr; }},
    {"expected out to be a tensor", [](LinearCall& c) { c.args.out = nullptr; }},
    {"x's dtype to be float32, bfloat16, float16 or float64, got int32",
     [](LinearCall& c) { c.x.tensor.dtype = kInt32; }},
    {"weight's dtype to be float32, got bfloat16",
     [](LinearCall& c) { c.weight.tensor.dtype = kBFloat16; }},
    {"bias's dtype to be float32", [](LinearCall& c) { c.bias.tensor.dtype = kFloat64; }},
    {"out's dtype to be float32", [](LinearCall& c) { c.out.tensor.dtype = kFloat16; }},
    {"out on the device of x", [](LinearCall& c) { c.out.tensor.device_type = ATTN_DEVICE_CUDA; }},
    {"expected tensors on the CPU",
     [](LinearCall& c) {
       for (EditableTensor* each : {&c.x, &c.weight, &c.bias, &c.out}) {
         each->tensor.device_type = ATTN_DEVICE_CUDA;
       }
     },
     ATTN_ERROR_UNSUPPORTED},
    {"x to have 2 axes, got 1", [](LinearCall& c) { c.x.tensor.ndim = 1; }},
    {"bias to have 1 axes, got 2", [](LinearCall& c) { c.bias.tensor.ndim = 2; }},
    {"x's width E >= 1", [](LinearCall& c) { c.x.shape[1] = 0; }},
    {"weight's extent E (axis 1) to be 8 as in x, got 7",
     [](LinearCall& c) { c.weight.shape[1] = 7; }},
    {"bias's extent F (axis 0) to be 6 as in weight, got 5",
     [](LinearCall& c) { c.bias.shape[0] = 5; }},
    {"out's extent N (axis 0) to be 3 as in x, got 2", [](LinearCall& c) { c.out.shape[0] = 2; }},
    {"out's extent F (axis 1) to be 6 as in weight, got 5",
     [](LinearCall& c) { c.out.shape[1] = 5; }},
    {"x's last stride to be 1, got 2", [](LinearCall& c) { c.x.strides[1] = 2; }},
    {"weight's last stride to be 1, got 2", [](LinearCall& c) { c.weight.strides[1] = 2; }},
    {"bias's last stride to be 1, got 0", [](LinearCall& c) { c.bias.strides[0] = 0; }},
    {"out's elements not to overlap", [](LinearCall& c) { c.out.strides[0] = 0; }},
    {"weight's data", [](LinearCall& c) { c.weight.tensor.data = nullptr; }},
    {"out apart from x", [](LinearCall& c) { c.out.tensor.data = c.x.tensor.data; }},
};

void run_case(const Case& expected) {
  LinearCall call(kFloat32, {});
  expected.spoil(call);
  const GuardedBytes before = call.out_array.bytes();
  const attn_status status = call.run();
  CHECK_IN(expected.expected, status == expected.status);
  CHECK_IN(call.error.message, std::strstr(call.error.message, expected.expected) != nullptr);
  CHECK_IN(call.error.message, std::strncmp(call.error.message, "attn_linear", 11) == 0);
  CHECK_IN(expected.expected, before == call.out_array.bytes());
}

void run_workspace() {
  LinearCall call(kFloat32, {});
  size_t bytes = 0;
  CHECK(attn_linear_workspace(&call.args, &bytes, &call.error) == ATTN_OK);
  CHECK(attn_linear(&call.args, &call.error) == ATTN_ERROR_INVALID_ARGUMENT);
  CHECK_IN(call.error.message, std::strstr(call.error.message, "expected a workspace of"));
  CHECK(attn_linear_workspace(&call.args, nullptr, nullptr) == ATTN_ERROR_INVALID_ARGUMENT);
  CHECK(attn_linear(nullptr, nullptr) == ATTN_ERROR_INVALID_ARGUMENT);
}

}  // namespace

int main() {
  for (const Case& expected : kCases) run_case(expected);
  run_workspace();
  return check::outcome();
}
