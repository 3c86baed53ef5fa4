// Every way to break the contract of attn/merge.h: the status, the argument named, nothing written.
#include <cstring>

#include "check.h"
#include "merge_calls.h"

namespace {

using Spoil = void (*)(MergeCalls& calls);

enum class Where { kForward, kBackward, kBoth };

struct Case {
  const char* expected;  // what the message must contain
  Spoil spoil;
  Where where = Where::kBoth;
  attn_status status = ATTN_ERROR_INVALID_ARGUMENT;
};

attn_tensor& tensor(ChunkList& list, size_t index) { return list.tensors[index].tensor; }

const Case kCases[] = {
    // Structs and lists
    {"args's struct_size",
     [](MergeCalls& c) { c.forward.struct_size = c.backward.struct_size = 8; }},
    {"exec's num_threads >= 0, got -1", [](MergeCalls& c) { c.exec.num_threads = -1; }},
    {"num_chunks in [1, 1024], got 0",
     [](MergeCalls& c) { c.forward.num_chunks = c.backward.num_chunks = 0; }},
    {"num_chunks in [1, 1024], got 1025",
     [](MergeCalls& c) { c.forward.num_chunks = c.backward.num_chunks = 1025; }},
    {"chunk_outs to be an array",
     [](MergeCalls& c) { c.forward.chunk_outs = c.backward.chunk_outs = nullptr; }},
    {"chunk_lses to be an array",
     [](MergeCalls& c) { c.forward.chunk_lses = c.backward.chunk_lses = nullptr; }},
    // Missing tensors
    {"expected chunk_outs[0] to be a tensor",
     [](MergeCalls& c) { c.chunk_outs.pointers[0] = nullptr; }},
    {"in chunk 2, expected chunk_out to be a tensor",
     [](MergeCalls& c) { c.chunk_outs.pointers[2] = nullptr; }},
    {"in chunk 1, expected chunk_lse to be a tensor",
     [](MergeCalls& c) { c.chunk_lses.pointers[1] = nullptr; }},
    {"expected out to be a tensor", [](MergeCalls& c) { c.forward.out = nullptr; },
     Where::kForward},
    {"expected grad_out to be a tensor", [](MergeCalls& c) { c.backward.grad_out = nullptr; },
     Where::kBackward},
    // Dtypes
    {"in chunk 1, expected chunk_out's dtype to be float32, got bfloat16",
     [](MergeCalls& c) { tensor(c.chunk_outs, 1).dtype = kBFloat16; }},
    {"chunk_lse's dtype to be float32, got float64",
     [](MergeCalls& c) { tensor(c.chunk_lses, 0).dtype = kFloat64; }},
    {"out's dtype to be float32, bfloat16 or float16, got float64",
     [](MergeCalls& c) { tensor(c.results, 0).dtype = kFloat64; }, Where::kForward},
    {"grad_lse's dtype to be float32", [](MergeCalls& c) { tensor(c.results, 3).dtype = kFloat64; },
     Where::kBackward},
    {"grad_chunk_out's dtype to be float32",
     [](MergeCalls& c) { tensor(c.grad_chunk_outs, 1).dtype = kFloat16; }, Where::kBackward},
    // Devices
    {"in chunk 1, expected chunk_out on the device of chunk_outs[0]",
     [](MergeCalls& c) { tensor(c.chunk_outs, 1).device_type = ATTN_DEVICE_CUDA; }},
    {"; move the",
     [](MergeCalls& c) {
       for (ChunkList* list :
            {&c.chunk_outs, &c.chunk_lses, &c.grad_chunk_outs, &c.grad_chunk_lses, &c.results}) {
         for (EditableTensor& each : list->tensors) each.tensor.device_type = ATTN_DEVICE_CUDA;
       }
     },
     Where::kBoth, ATTN_ERROR_UNSUPPORTED},
    // Extents and strides
    {"chunk_outs[0] to have 4 axes, got 3",
     [](MergeCalls& c) { tensor(c.chunk_outs, 0).ndim = 3; }},
    {"in chunk 1, expected chunk_out's extent M (axis 1) to be 5 as in chunk_outs[0], got 4",
     [](MergeCalls& c) { c.chunk_outs.tensors[1].shape[1] = 4; }},
    {"in chunk 2, expected chunk_lse's extent H (axis 1) to be 3 as in chunk_outs[0], got 2",
     [](MergeCalls& c) { c.chunk_lses.tensors[2].shape[1] = 2; }},
    {"out's extent Kv (axis 3)", [](MergeCalls& c) { c.results.tensors[0].shape[3] = 5; },
     Where::kForward},
    {"lse's extent M (axis 2)", [](MergeCalls& c) { c.results.tensors[1].shape[2] = 1; },
     Where::kForward},
    {"grad_chunk_lse's extent B", [](MergeCalls& c) { c.grad_chunk_lses.tensors[1].shape[0] = 1; },
     Where::kBackward},
    {"chunk_outs[0]'s width Kv >= 1, got 0",
     [](MergeCalls& c) { c.chunk_outs.tensors[0].shape[3] = 0; }},
    {"in chunk 1, expected chunk_out's last stride to be 1, got 2",
     [](MergeCalls& c) { c.chunk_outs.tensors[1].strides[3] = 2; }},
    {"out's elements not to overlap", [](MergeCalls& c) { c.results.tensors[0].strides[0] = 0; },
     Where::kForward},
    {"grad_chunk_out's elements not to overlap",
     [](MergeCalls& c) { c.grad_chunk_outs.tensors[2].strides[1] = 1; }, Where::kBackward},
    // Data
    {"chunk_lse's data", [](MergeCalls& c) { tensor(c.chunk_lses, 1).data = nullptr; }},
    {"in chunk 2, expected chunk_out apart from out, got the same data pointer",
     [](MergeCalls& c) { tensor(c.results, 0).data = tensor(c.chunk_outs, 2).data; },
     Where::kForward},
    {"lse apart from out",
     [](MergeCalls& c) { tensor(c.results, 1).data = c.out().tensor()->data; }, Where::kForward},
    {"grad_chunk_out apart from grad_out",
     [](MergeCalls& c) { tensor(c.grad_chunk_outs, 0).data = c.grad_out().tensor()->data; },
     Where::kBackward},
    {"every chunk's gradients apart from the other chunks' tensors",
     [](MergeCalls& c) { tensor(c.grad_chunk_outs, 0).data = tensor(c.grad_chunk_outs, 1).data; },
     Where::kBackward},
    {"every chunk's gradients apart from the other chunks' tensors",
     [](MergeCalls& c) {
       tensor(c.grad_chunk_outs, 0).data =
           static_cast<float*>(tensor(c.grad_chunk_outs, 1).data) + 6;
     },
     Where::kBackward},
    {"in chunk 1, expected chunk_lse apart from out, got overlapping memory",
     [](MergeCalls& c) {
       tensor(c.chunk_lses, 1).data = static_cast<float*>(tensor(c.results, 0).data) + 6;
     },
     Where::kForward},
    {"every chunk's gradients apart from the other chunks' tensors",
     [](MergeCalls& c) { tensor(c.grad_chunk_lses, 2).data = tensor(c.chunk_lses, 1).data; },
     Where::kBackward},
};

void check_refused(const Case& expected, const char* who, attn_status status,
                   const attn_error& error, const std::vector<Array*>& outputs) {
  CHECK_IN(expected.expected, status == expected.status);
  CHECK_IN(error.message, std::strstr(error.message, expected.expected) != nullptr);
  CHECK_IN(error.message, std::strncmp(error.message, who, std::strlen(who)) == 0);
  CHECK_IN(expected.expected, is_unwritten(outputs));
}

void run_case(const Case& expected) {
  if (expected.where != Where::kBackward) {
    MergeCalls calls(kFloat32, kFloat32, {});
    expected.spoil(calls);
    mark_unwritten(calls.forward_outputs());
    const attn_status status = calls.run_forward();
    check_refused(expected, "attn_merge_forward: ", status, calls.error, calls.forward_outputs());
  }
  if (expected.where != Where::kForward) {
    MergeCalls calls(kFloat32, kFloat32, {});
    expected.spoil(calls);
    mark_unwritten(calls.backward_outputs());
    const attn_status status = calls.run_backward();
    check_refused(expected, "attn_merge_backward: ", status, calls.error, calls.backward_outputs());
  }
}

}  // namespace

int main() {
  for (const Case& expected : kCases) run_case(expected);
  CHECK(attn_merge_forward(nullptr, nullptr) == ATTN_ERROR_INVALID_ARGUMENT);
  CHECK(attn_merge_backward(nullptr, nullptr) == ATTN_ERROR_INVALID_ARGUMENT);
  // A tensor given as two inputs is read twice.
  MergeCalls calls(kFloat32, kFloat32, {});
  calls.chunk_outs.pointers[1] = calls.chunk_outs.pointers[0];
  CHECK_IN(calls.error.message, calls.run_forward() == ATTN_OK);
  CHECK_IN(calls.error.message, calls.run_backward() == ATTN_OK);
  return check::outcome();
}
