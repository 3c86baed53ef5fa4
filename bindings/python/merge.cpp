// merge_forward and merge_backward: borrow the chunks, run without the GIL, raise.
#include "merge.h"

#include <nanobind/stl/optional.h>

#include <deque>
#include <optional>
#include <vector>

#include "attn/attn.h"
#include "call.h"
#include "tensor_arg.h"

namespace attn::python {
namespace nb = nanobind;
using namespace nb::literals;

namespace {

constexpr const char* kForward = "merge_forward";
constexpr const char* kBackward = "merge_backward";

// A sequence of arrays as one argument of the C call; None: NULL. An array of it may be None.
class ChunkArgs {
 public:
  ChunkArgs(const char* function, const char* argument, nb::handle arrays, Access access) {
    if (arrays.is_none()) return;
    present_ = true;
    for (nb::handle array : nb::iter(arrays)) {
      chunks_.emplace_back(function, argument, array, access);
      pointers_.push_back(chunks_.back().get());
    }
  }

  bool present() const { return present_; }
  int64_t count() const { return static_cast<int64_t>(pointers_.size()); }
  const attn_tensor* const* get() const { return present_ ? pointers_.data() : nullptr; }

 private:
  bool present_ = false;
  std::deque<TensorArg> chunks_;  // none may move
  std::vector<const attn_tensor*> pointers_;
};

void check_count(const char* function, const char* argument, const ChunkArgs& chunks,
                 int64_t expected) {
  if (!chunks.present() || chunks.count() == expected) return;
  PyErr_Format(PyExc_ValueError,
               "%s: expected as many arrays in %s as in chunk_outs, got %lld and %lld; pass one "
               "for each chunk",
               function, argument, static_cast<long long>(chunks.count()),
               static_cast<long long>(expected));
  throw nb::python_error();
}

void merge_forward(nb::handle chunk_outs, nb::handle chunk_lses, nb::handle out, nb::handle lse,
                   int32_t num_threads, std::optional<uint64_t> stream) {
  const ChunkArgs chunk_out_args(kForward, "chunk_outs", chunk_outs, Access::kRead);
  const ChunkArgs chunk_lse_args(kForward, "chunk_lses", chunk_lses, Access::kRead);
  check_count(kForward, "chunk_lses", chunk_lse_args, chunk_out_args.count());
  const TensorArg out_arg(kForward, "out", out, Access::kWrite);
  const TensorArg lse_arg(kForward, "lse", lse, Access::kWrite);
  const attn_exec exec = make_exec(num_threads, stream, out_arg);
  attn_merge_forward_args args = ATTN_MERGE_FORWARD_INIT;
  args.num_chunks = chunk_out_args.count();
  args.chunk_outs = chunk_out_args.get();
  args.chunk_lses = chunk_lse_args.get();
  args.out = out_arg.get();
  args.lse = lse_arg.get();
  args.exec = &exec;
  run_without_gil([&](attn_error& error) { return attn_merge_forward(&args, &error); });
}

void merge_backward(nb::handle chunk_outs, nb::handle chunk_lses, nb::handle grad_out,
                    nb::handle grad_lse, nb::handle grad_chunk_outs, nb::handle grad_chunk_lses,
                    int32_t num_threads, std::optional<uint64_t> stream) {
  const ChunkArgs chunk_out_args(kBackward, "chunk_outs", chunk_outs, Access::kRead);
  const ChunkArgs chunk_lse_args(kBackward, "chunk_lses", chunk_lses, Access::kRead);
  const ChunkArgs grad_chunk_out_args(kBackward, "grad_chunk_outs", grad_chunk_outs,
                                      Access::kWrite);
  const ChunkArgs grad_chunk_lse_args(kBackward, "grad_chunk_lses", grad_chunk_lses,
                                      Access::kWrite);
  check_count(kBackward, "chunk_lses", chunk_lse_args, chunk_out_args.count());
  check_count(kBackward, "grad_chunk_outs", grad_chunk_out_args, chunk_out_args.count());
  check_count(kBackward, "grad_chunk_lses", grad_chunk_lse_args, chunk_out_args.count());
  const TensorArg grad_out_arg(kBackward, "grad_out", grad_out, Access::kRead);
  const TensorArg grad_lse_arg(kBackward, "grad_lse", grad_lse, Access::kRead);
  const attn_exec exec = make_exec(num_threads, stream, grad_out_arg);
  attn_merge_backward_args args = ATTN_MERGE_BACKWARD_INIT;
  args.num_chunks = chunk_out_args.count();
  args.chunk_outs = chunk_out_args.get();
  args.chunk_lses = chunk_lse_args.get();
  args.grad_out = grad_out_arg.get();
  args.grad_lse = grad_lse_arg.get();
  args.grad_chunk_outs = grad_chunk_out_args.get();
  args.grad_chunk_lses = grad_chunk_lse_args.get();
  args.exec = &exec;
  run_without_gil([&](attn_error& error) { return attn_merge_backward(&args, &error); });
}

constexpr const char* kForwardDoc =
    R"(Write attention over all keys, from that over chunks of them, into `out`, its lse into `lse`.

Shapes: each of chunk_outs, and out, [B, M, H, Kv]; each of chunk_lses, and lse, [B, H, M].
Dtypes: chunk_outs alike: float32, bfloat16, float16 or float64; out the same, or any of the first
    three if they are; every lse float32 (float64 for float64).
Numerics: float32 (float64 for float64); a chunk with lse -inf adds nothing; without any other, out
    0 and lse -inf.
On a GPU: `stream` as in attention_forward.
Raises: TypeError if an argument is no array or `out` is read-only; ValueError, naming the
    argument, for shapes, dtypes and strides that do not fit, or for no chunk or more than 1024.
    Nothing is copied, and nothing is written unless the call succeeds.)";

constexpr const char* kBackwardDoc =
    R"(Write the gradients of sum(grad_out * out) + sum(grad_lse * lse) into each grad_* that is given.

Shapes: as in merge_forward; grad_out as out; grad_lse as lse; grad_chunk_outs and grad_chunk_lses
    as chunk_outs and chunk_lses, in their dtypes. An array among them may be None.
Numerics, raises: as in merge_forward.)";

}  // namespace

void bind_merge(nb::module_& module) {
  module.def("merge_forward", &merge_forward, "chunk_outs"_a, "chunk_lses"_a, "out"_a.none(),
             "lse"_a = nb::none(), nb::kw_only(), "num_threads"_a = 0, "stream"_a = nb::none(),
             nb::sig("def merge_forward(chunk_outs: Sequence[Array], chunk_lses: Sequence[Array], "
                     "out: Array, lse: Array | None = None, *, num_threads: int = 0, "
                     "stream: int | None = None) -> None"),
             kForwardDoc);
  module.def("merge_backward", &merge_backward, "chunk_outs"_a, "chunk_lses"_a, "grad_out"_a.none(),
             "grad_lse"_a = nb::none(), nb::kw_only(), "grad_chunk_outs"_a = nb::none(),
             "grad_chunk_lses"_a = nb::none(), "num_threads"_a = 0, "stream"_a = nb::none(),
             nb::sig("def merge_backward(chunk_outs: Sequence[Array], chunk_lses: Sequence[Array], "
                     "grad_out: Array, grad_lse: Array | None = None, *, "
                     "grad_chunk_outs: Sequence[Array | None] | None = None, "
                     "grad_chunk_lses: Sequence[Array | None] | None = None, "
                     "num_threads: int = 0, stream: int | None = None) -> None"),
             kBackwardDoc);
}

}  // namespace attn::python
