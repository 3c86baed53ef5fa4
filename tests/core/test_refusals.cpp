// Every way to break the contract of attn/*.h: the status, the argument named, nothing written.
#include <cmath>
#include <cstring>
#include <string>

#include "calls.h"
#include "check.h"

namespace {

using Spoil = void (*)(Calls& calls);

// Whom the fault concerns: `kBoth` spoils what forward and backward share.
enum class Where { kForward, kBackward, kBoth };

struct Case {
  const char* expected;  // what the message must contain
  Spoil spoil;
  Where where = Where::kBoth;
  attn_status status = ATTN_ERROR_INVALID_ARGUMENT;
  bool queries_too = true;  // whether a workspace query, which reads no data, refuses as well
};

attn_tensor some_tensor;
int64_t five_numbers[5] = {1, 1, 1, 1, 1};

void* bytes_into(Array& array, size_t offset) { return array.bytes().data() + offset; }

// Lays [B, M, H, width] out as [B, H, M, width].
void put_heads_first(EditableTensor& t) {
  t.strides[1] = t.shape[3];
  t.strides[2] = t.shape[1] * t.shape[3];
}

const Case kCases[] = {
    // Structs
    {"args's struct_size", [](Calls& c) { c.forward.struct_size = c.backward.struct_size = 0; }},
    {"args's struct_size", [](Calls& c) { c.forward.struct_size -= 1; }, Where::kForward},
    {"args's struct_size", [](Calls& c) { c.backward.struct_size = 1 << 20; }, Where::kBackward},
    {"mask's struct_size", [](Calls& c) { c.mask.struct_size = 8; }},
    {"exec's struct_size", [](Calls& c) { c.exec.struct_size = SIZE_MAX; }},
    {"exec's num_threads >= 0, got -1", [](Calls& c) { c.exec.num_threads = -1; }},
    {"exec's reserved to be 0, got 7", [](Calls& c) { c.exec.reserved = 7; }},
    // Missing tensors
    {"expected query to be a tensor", [](Calls& c) { c.forward.query = c.backward.query = 0; }},
    {"expected key to be a tensor", [](Calls& c) { c.forward.key = c.backward.key = 0; }},
    {"expected value to be a tensor", [](Calls& c) { c.forward.value = c.backward.value = 0; }},
    {"expected out to be a tensor", [](Calls& c) { c.forward.out = c.backward.out = 0; }},
    {"expected lse to be a tensor", [](Calls& c) { c.backward.lse = 0; }, Where::kBackward},
    {"expected grad_out to be a tensor", [](Calls& c) { c.backward.grad_out = 0; },
     Where::kBackward},
    // Structure
    {"query to have 4 axes, got 3", [](Calls& c) { c.query.tensor.ndim = 3; }},
    {"key to have 4 axes, got -2", [](Calls& c) { c.key.tensor.ndim = -2; }},
    {"lse to have 3 axes, got 4", [](Calls& c) { c.lse.tensor.ndim = 4; }},
    {"value's shape to be an array", [](Calls& c) { c.value.tensor.shape = 0; }},
    {"query's strides to be an array", [](Calls& c) { c.query.tensor.strides = 0; }},
    {"bias to have 4 axes, got 5",
     [](Calls& c) {
       some_tensor = c.bias.tensor;
       some_tensor.ndim = 5;
       some_tensor.shape = some_tensor.strides = five_numbers;
       c.mask.bias = &some_tensor;
     }},
    // Dtypes
    {"query's dtype to be float32, bfloat16, float16 or float64, got bool",
     [](Calls& c) { c.query.tensor.dtype = kBool; }},
    {"query's dtype", [](Calls& c) { c.query.tensor.dtype = {ATTN_DTYPE_INT, 32, 1}; }},
    {"key's dtype to be float32, got float16", [](Calls& c) { c.key.tensor.dtype = kFloat16; }},
    {"value's dtype to be float32, got DLPack code 2 with 32 bits and 4 lanes",
     [](Calls& c) { c.value.tensor.dtype.lanes = 4; }},
    {"out's dtype to be float32, bfloat16 or float16, got float64",
     [](Calls& c) { c.out.tensor.dtype = kFloat64; }},
    {"lse's dtype to be float32, got float64", [](Calls& c) { c.lse.tensor.dtype = kFloat64; }},
    {"bias's dtype to be float32 or bool, got bfloat16",
     [](Calls& c) { c.bias.tensor.dtype = kBFloat16; }},
    {"grad_out's dtype to be float32, got bfloat16",
     [](Calls& c) { c.grad_out.tensor.dtype = kBFloat16; }, Where::kBackward},
    {"grad_lse's dtype", [](Calls& c) { c.grad_lse.tensor.dtype = kBFloat16; }, Where::kBackward},
    {"grad_key's dtype", [](Calls& c) { c.grad_key.tensor.dtype = kBFloat16; }, Where::kBackward},
    {"grad_bias's dtype", [](Calls& c) { c.grad_bias.tensor.dtype = kFloat16; }, Where::kBackward},
    // Devices
    {"query's device_type", [](Calls& c) { c.query.tensor.device_type = 0; }},
    {"key on the device of query, type 1 id 0, got type 2 id 1",
     [](Calls& c) {
       c.key.tensor.device_type = ATTN_DEVICE_CUDA;
       c.key.tensor.device_id = 1;
     }},
    {"grad_query on the device of query",
     [](Calls& c) { c.grad_query.tensor.device_type = ATTN_DEVICE_CUDA; }, Where::kBackward},
    {"; move the",
     [](Calls& c) {
       for (EditableTensor* t : {&c.query, &c.key, &c.value, &c.bias, &c.out, &c.lse}) {
         t->tensor.device_type = ATTN_DEVICE_CUDA;
       }
     },
     Where::kForward, ATTN_ERROR_UNSUPPORTED},
    // Extents
    {"key's extent B (axis 0) to be 2 as in query, got 3", [](Calls& c) { c.key.shape[0] = 3; }},
    {"value's extent B (axis 0)", [](Calls& c) { c.value.shape[0] = 1; }},
    {"value's extent Mkv (axis 1) to be 7 as in key, got 6",
     [](Calls& c) { c.value.shape[1] = 6; }},
    {"value's extent Hkv (axis 2) to be 2 as in key, got 1",
     [](Calls& c) { c.value.shape[2] = 1; }},
    {"key's extent K (axis 3) to be 8 as in query, got 4", [](Calls& c) { c.key.shape[3] = 4; }},
    {"query's extent Mq (axis 1) to be in [0, 2^31), got -1",
     [](Calls& c) { c.query.shape[1] = -1; }},
    {"key's extent Mkv (axis 1) to be in [0, 2^31)",
     [](Calls& c) { c.key.shape[1] = int64_t{1} << 31; }},
    {"out's extent Kv (axis 3) to be 6 as in value, got 8", [](Calls& c) { c.out.shape[3] = 8; }},
    {"lse's extent Hq (axis 1) to be 4 as in query, got 5", [](Calls& c) { c.lse.shape[1] = 5; }},
    {"bias's extent Mkv (axis 3) to be 7 or 1 as in key, got 2",
     [](Calls& c) { c.bias.shape[3] = 2; }},
    {"grad_out's extent Mq", [](Calls& c) { c.grad_out.shape[1] = 4; }, Where::kBackward},
    {"grad_lse's extent B", [](Calls& c) { c.grad_lse.shape[0] = 1; }, Where::kBackward},
    {"grad_query's extent K", [](Calls& c) { c.grad_query.shape[3] = 7; }, Where::kBackward},
    {"grad_value's extent Kv", [](Calls& c) { c.grad_value.shape[3] = 7; }, Where::kBackward},
    {"grad_bias's extent Mq (axis 2) to be 5 as in bias, got 1",
     [](Calls& c) { c.grad_bias.shape[2] = 1; }, Where::kBackward},
    {"a multiple of key's heads Hkv, got Hq=4, Hkv=3",
     [](Calls& c) { c.key.shape[2] = c.value.shape[2] = 3; }},
    {"query's width K >= 1", [](Calls& c) { c.query.shape[3] = c.key.shape[3] = 0; }},
    {"value's width Kv >= 1", [](Calls& c) { c.value.shape[3] = 0; }},
    {"key's heads Hkv >= 1", [](Calls& c) { c.key.shape[2] = c.value.shape[2] = 0; }},
    {"(Hq / Hkv) * Mq < 2^31",
     [](Calls& c) {
       c.query.shape[1] = int64_t{1} << 30;
       c.query.strides[1] = 0;
     }},
    // Strides
    {"query's last stride to be 1, got 2", [](Calls& c) { c.query.strides[3] = 2; }},
    {"key's last stride to be 1, got 0", [](Calls& c) { c.key.strides[3] = 0; }},
    {"out's last stride to be 1, got -1", [](Calls& c) { c.out.strides[3] = -1; }},
    {"value's elements within 2^59", [](Calls& c) { c.value.strides[0] = INT64_MIN; }},
    {"key's elements within 2^59", [](Calls& c) { c.key.strides[1] = int64_t{1} << 58; }},
    {"out's elements not to overlap", [](Calls& c) { c.out.strides[0] = 0; }, Where::kForward},
    {"out's elements not to overlap", [](Calls& c) { c.out.strides[1] = 23; }, Where::kForward},
    {"out's elements not to overlap, got stride 1 on axis 1",
     [](Calls& c) { c.out.strides[1] = 1; }, Where::kForward},
    {"out's last stride to be 1, got 2", [](Calls& c) { c.out.strides[3] = 2; }, Where::kForward},
    {"lse's elements not to overlap, got stride 1 on axis 0",
     [](Calls& c) { c.lse.strides[0] = 1; }, Where::kForward},
    {"lse's elements not to overlap", [](Calls& c) { c.lse.strides[2] = 0; }, Where::kForward},
    {"grad_key's elements not to overlap", [](Calls& c) { c.grad_key.strides[2] = 0; },
     Where::kBackward},
    {"grad_bias's elements not to overlap", [](Calls& c) { c.grad_bias.strides[3] = 0; },
     Where::kBackward},
    // Mask
    {"band.anchor", [](Calls& c) { c.mask.band.anchor = 2; }},
    {"band.reserved", [](Calls& c) { c.mask.band.reserved = 1; }},
    {"dropout.p to be in [0, 1], got 1.5", [](Calls& c) { c.mask.dropout.p = 1.5; }},
    {"dropout.p", [](Calls& c) { c.mask.dropout.p = -0.1; }},
    {"dropout.p", [](Calls& c) { c.mask.dropout.p = NAN; }},
    {"sequences.q_start to be a tensor, got NULL; keys' ranges need sequences",
     [](Calls& c) { c.mask.sequences.k_len = &some_tensor; }},
    {"sequences.q_start to be a tensor, got NULL; pages need sequences",
     [](Calls& c) { c.mask.pages = {&some_tensor, 16}; }},
    {"pages.page_size to be 0 without a block_table, got 16",
     [](Calls& c) { c.mask.pages.page_size = 16; }},
    {"blocks.offsets to be a tensor, got NULL",
     [](Calls& c) { c.mask.blocks.indices = &some_tensor; }},
    {"mask's softcap to be finite and >= 0, got -1", [](Calls& c) { c.mask.softcap = -1; }},
    {"grad_sink to be NULL, got a tensor; the mask has no sink",
     [](Calls& c) { c.backward.grad_sink = c.backward.grad_bias; }, Where::kBackward},
    {"grad_bias to be NULL, got a tensor; the mask has no bias",
     [](Calls& c) { c.mask.bias = nullptr; }, Where::kBackward},
    {"grad_bias to be NULL, got a tensor; a bool bias has no gradient",
     [](Calls& c) {
       c.bias.tensor.dtype = kBool;
       std::memset(c.arrays.bias.bytes().data(), 1, c.arrays.bias.bytes().size());
     },
     Where::kBackward},
    // Scale
    {"expected scale to be finite", [](Calls& c) { c.forward.scale = c.backward.scale = NAN; }},
    {"expected scale to be finite",
     [](Calls& c) { c.forward.scale = c.backward.scale = -INFINITY; }},
    // Data
    {"query's data", [](Calls& c) { c.query.tensor.data = nullptr; }, Where::kBoth,
     ATTN_ERROR_INVALID_ARGUMENT, false},
    {"bias's data", [](Calls& c) { c.bias.tensor.data = nullptr; }, Where::kBoth,
     ATTN_ERROR_INVALID_ARGUMENT, false},
    {"key's data at a multiple of 4 bytes",
     [](Calls& c) { c.key.tensor.data = static_cast<char*>(c.key.tensor.data) + 1; }, Where::kBoth,
     ATTN_ERROR_INVALID_ARGUMENT, false},
    {"lse's data", [](Calls& c) { c.lse.tensor.data = nullptr; }, Where::kBoth,
     ATTN_ERROR_INVALID_ARGUMENT, false},
    {"out apart from query", [](Calls& c) { c.out.tensor.data = c.query.tensor.data; },
     Where::kForward, ATTN_ERROR_INVALID_ARGUMENT, false},
    {"lse apart from out", [](Calls& c) { c.lse.tensor.data = c.out.tensor.data; }, Where::kForward,
     ATTN_ERROR_INVALID_ARGUMENT, false},
    {"grad_key apart from grad_query",
     [](Calls& c) { c.grad_key.tensor.data = c.grad_query.tensor.data; }, Where::kBackward,
     ATTN_ERROR_INVALID_ARGUMENT, false},
    {"grad_query apart from grad_out",
     [](Calls& c) { c.grad_query.tensor.data = c.grad_out.tensor.data; }, Where::kBackward,
     ATTN_ERROR_INVALID_ARGUMENT, false},
    {"out apart from query, got overlapping memory",
     [](Calls& c) { c.out.tensor.data = bytes_into(c.arrays.query, 8 * sizeof(float)); },
     Where::kForward, ATTN_ERROR_INVALID_ARGUMENT, false},
    {"out apart from query, got overlapping memory",  // heads first, and each from its last query
     [](Calls& c) {
       put_heads_first(c.query);
       put_heads_first(c.out);
       c.out.strides[1] = -c.out.strides[1];
       c.out.tensor.data = bytes_into(c.arrays.query, (8 + 4 * 6) * sizeof(float));
     },
     Where::kForward, ATTN_ERROR_INVALID_ARGUMENT, false},
    {"lse apart from out, got overlapping memory",
     [](Calls& c) { c.lse.tensor.data = bytes_into(c.arrays.out, 6 * sizeof(float)); },
     Where::kForward, ATTN_ERROR_INVALID_ARGUMENT, false},
    {"grad_key apart from grad_query, got overlapping memory",
     [](Calls& c) { c.grad_key.tensor.data = bytes_into(c.arrays.grad_query, 8 * sizeof(float)); },
     Where::kBackward, ATTN_ERROR_INVALID_ARGUMENT, false},
    {"workspace apart from out",
     [](Calls& c) {
       c.forward.workspace = bytes_into(c.arrays.out, 0);
       c.forward.workspace_bytes = 64;
     },
     Where::kForward, ATTN_ERROR_INVALID_ARGUMENT, false},
    {"workspace apart from ",
     [](Calls& c) {
       c.backward.workspace = bytes_into(c.arrays.query, 4);
       c.backward.workspace_bytes = SIZE_MAX;
     },
     Where::kBackward, ATTN_ERROR_INVALID_ARGUMENT, false},
};

Arrays arrays_with_bias() {
  const Shape shape;
  Arrays arrays(kFloat32, kFloat32, shape, 1);
  arrays.add_bias(kFloat32, {shape.B, shape.Hq, shape.Mq, shape.Mkv}, 9);
  return arrays;
}

void check_refused(const Case& expected, const char* function, attn_status status,
                   const attn_error& error) {
  CHECK_IN(expected.expected, status == expected.status);
  CHECK_IN(error.message, std::strstr(error.message, expected.expected) != nullptr);
  const std::string who = std::string(function) + ": ";
  CHECK_IN(error.message, std::strncmp(error.message, who.c_str(), who.size()) == 0);
}

void run_forward_case(const Case& expected) {
  Calls calls(arrays_with_bias());
  CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
  expected.spoil(calls);
  mark_unwritten(calls.forward_outputs());
  check_refused(expected, "attn_attention_forward",
                attn_attention_forward(&calls.forward, &calls.error), calls.error);
  CHECK_IN(expected.expected, is_unwritten(calls.forward_outputs()));
  CHECK(attn_attention_forward(&calls.forward, nullptr) == expected.status);
  size_t bytes = 12345;
  if (!expected.queries_too) return;
  check_refused(expected, "attn_attention_forward_workspace",
                attn_attention_forward_workspace(&calls.forward, &bytes, &calls.error),
                calls.error);
  CHECK(bytes == 12345);
}

void run_backward_case(const Case& expected) {
  Calls calls(arrays_with_bias());
  CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
  CHECK_IN(calls.error.message, calls.run_backward() == ATTN_OK);
  expected.spoil(calls);
  mark_unwritten(calls.backward_outputs());
  check_refused(expected, "attn_attention_backward",
                attn_attention_backward(&calls.backward, &calls.error), calls.error);
  CHECK_IN(expected.expected, is_unwritten(calls.backward_outputs()));
  CHECK(attn_attention_backward(&calls.backward, nullptr) == expected.status);
  size_t bytes = 12345;
  if (!expected.queries_too) return;
  check_refused(expected, "attn_attention_backward_workspace",
                attn_attention_backward_workspace(&calls.backward, &bytes, &calls.error),
                calls.error);
  CHECK(bytes == 12345);
}

void test_null_arguments() {
  attn_error error{};
  CHECK(attn_attention_forward(nullptr, &error) == ATTN_ERROR_INVALID_ARGUMENT);
  CHECK_IN(error.message, std::strstr(error.message, "args to be a struct, got NULL"));
  CHECK(attn_attention_backward(nullptr, nullptr) == ATTN_ERROR_INVALID_ARGUMENT);
  Calls calls(arrays_with_bias());
  CHECK(attn_attention_forward_workspace(&calls.forward, nullptr, &error) ==
        ATTN_ERROR_INVALID_ARGUMENT);
  CHECK_IN(error.message, std::strstr(error.message, "bytes"));
  CHECK(attn_attention_backward_workspace(&calls.backward, nullptr, nullptr) ==
        ATTN_ERROR_INVALID_ARGUMENT);
  CHECK(attn_cpu_isa(nullptr, &error) == ATTN_ERROR_INVALID_ARGUMENT);
}

// Too little workspace, or none, is refused by whichever call needs some.
void test_workspace() {
  Calls calls(arrays_with_bias());
  CHECK(calls.run_forward() == ATTN_OK);
  CHECK(calls.run_backward() == ATTN_OK);
  mark_unwritten(calls.backward_outputs());
  if (calls.backward.workspace_bytes > 0) {
    calls.backward.workspace_bytes -= 1;
    CHECK(attn_attention_backward(&calls.backward, &calls.error) == ATTN_ERROR_INVALID_ARGUMENT);
    CHECK_IN(calls.error.message, std::strstr(calls.error.message, "workspace_bytes >="));
    calls.backward.workspace = nullptr;
    CHECK(attn_attention_backward(&calls.backward, &calls.error) == ATTN_ERROR_INVALID_ARGUMENT);
    CHECK_IN(calls.error.message, std::strstr(calls.error.message, "got NULL"));
  }
  CHECK(is_unwritten(calls.backward_outputs()));
}

// A struct as a later release may have it, for a caller built against that.
template <class Struct>
struct Grown {
  Struct known;
  char appended[64] = {};

  explicit Grown(const Struct& given) : known(given) { known.struct_size = sizeof(*this); }
};

// Fields that this release does not know are refused if they are set, and else make no difference.
void test_later_release() {
  Calls calls(arrays_with_bias());
  CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
  Grown<attn_attention_forward_args> args(calls.forward);
  Grown<attn_mask> mask(calls.mask);
  Grown<attn_exec> exec(calls.exec);
  args.known.mask = &mask.known;
  args.known.exec = &exec.known;
  const auto forward = [&] { return attn_attention_forward(&args.known, &calls.error); };
  CHECK_IN(calls.error.message, forward() == ATTN_OK);
  mark_unwritten(calls.forward_outputs());
  const auto check_field = [&](char& field, const char* expected) {
    field = 1;
    CHECK_IN(expected, forward() == ATTN_ERROR_UNSUPPORTED);
    CHECK_IN(calls.error.message, std::strstr(calls.error.message, expected));
    CHECK_IN(expected, is_unwritten(calls.forward_outputs()));
    field = 0;
  };
  check_field(args.appended[0], "args's fields from byte 88 on");
  check_field(mask.appended[63], "mask's fields from byte 232 on");
  check_field(exec.appended[8], "exec's fields from byte 40 on");
  CHECK_IN(calls.error.message, forward() == ATTN_OK);
}

// What the contract allows though it looks odd.
void test_accepted() {
  Calls defaults(arrays_with_bias());
  defaults.forward.mask = nullptr;
  defaults.forward.exec = nullptr;
  defaults.forward.lse = nullptr;
  CHECK_IN(defaults.error.message, defaults.run_forward() == ATTN_OK);

  Calls shared_heads(Arrays(kFloat32, kFloat32, {.Hq = 4, .Hkv = 4}, 2));
  shared_heads.key.strides[2] = shared_heads.value.strides[0] = 0;
  CHECK_IN(shared_heads.error.message, shared_heads.run_forward() == ATTN_OK);

  Calls no_gradients(arrays_with_bias());
  attn_attention_backward_args& backward = no_gradients.backward;
  backward.grad_query = backward.grad_key = backward.grad_value = backward.grad_bias = nullptr;
  CHECK_IN(no_gradients.error.message, no_gradients.run_backward() == ATTN_OK);

  Calls unbounded(arrays_with_bias());
  unbounded.mask.band = {INT64_MIN, INT64_MIN, ATTN_ANCHOR_BOTTOM_RIGHT, 0};
  CHECK_IN(unbounded.error.message, unbounded.run_forward() == ATTN_OK);
  CHECK(unbounded.arrays.lse.get(0) == -HUGE_VAL);

  Calls all_dropped(arrays_with_bias());
  all_dropped.mask.dropout.p = 1.0;
  CHECK_IN(all_dropped.error.message, all_dropped.run_forward() == ATTN_OK);
  CHECK(all_dropped.arrays.out.get(0) == 0.0);
}

}  // namespace

int main() {
  for (const Case& refused : kCases) {
    if (refused.where != Where::kBackward) run_forward_case(refused);
    if (refused.where != Where::kForward) run_backward_case(refused);
  }
  test_null_arguments();
  test_workspace();
  test_later_release();
  test_accepted();
  return check::outcome();
}
