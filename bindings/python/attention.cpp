// attention_forward and attention_backward: borrow the arrays, run without the GIL, raise.
#include "attention.h"

#include <nanobind/stl/optional.h>

#include <cstdio>
#include <memory>
#include <new>
#include <optional>

#include "attn/attn.h"
#include "call.h"
#include "tensor_arg.h"

namespace attn::python {
namespace nb = nanobind;
using namespace nb::literals;

namespace {

constexpr const char* kForward = "attention_forward";
constexpr const char* kBackward = "attention_backward";

attn_mask make_mask(const TensorArg& bias, int64_t band_left, int64_t band_right,
                    int32_t band_anchor, double dropout_p, uint64_t dropout_seed,
                    uint64_t dropout_offset) {
  attn_mask mask = ATTN_MASK_INIT;
  mask.band = {.left = band_left, .right = band_right, .anchor = band_anchor, .reserved = 0};
  mask.bias = bias.get();
  mask.dropout = {.p = dropout_p, .seed = dropout_seed, .offset = dropout_offset};
  return mask;
}

// The memory that a call works in: the caller's, or the CPU's, allocated here.
class Workspace {
 public:
  Workspace(const char* function, nb::handle array, const TensorArg& query)
      : function_(function),
        given_(function, "workspace", array, Access::kWrite),
        is_on_gpu_(query.is_on_gpu()) {
    const attn_tensor* tensor = given_.get();
    if (tensor == nullptr) return;
    const attn_tensor* like = query.get();
    if (tensor->ndim != 1 || !tensor->strides || tensor->strides[0] != 1) {
      refuse(
          "one axis, whose elements lie side by side, got another layout; pass an array of uint8");
    }
    if (like != nullptr &&
        (tensor->device_type != like->device_type || tensor->device_id != like->device_id)) {
      refuse("memory of query's device, got another's; allocate it there");
    }
  }

  // Needs no GIL.
  template <class Args>
  attn_status lend(Args& args, size_t bytes, attn_error& error) {
    if (const attn_tensor* tensor = given_.get()) {
      args.workspace = tensor->data;
      args.workspace_bytes = static_cast<size_t>(tensor->shape[0] * tensor->dtype.bits / 8);
      return ATTN_OK;
    }
    if (is_on_gpu_ && bytes > 0) {
      std::snprintf(error.message, sizeof(error.message),
                    "%s: expected workspace to have %zu bytes on the GPU, got None; allocate as "
                    "many as the call with dry_run=True returns",
                    function_, bytes);
      return ATTN_ERROR_INVALID_ARGUMENT;
    }
    own_.reset(new (std::nothrow) char[bytes]);
    if (!own_) {
      std::snprintf(error.message, sizeof(error.message),
                    "%s: no memory for a workspace of %zu bytes; use fewer threads", function_,
                    bytes);
      return ATTN_ERROR_OUT_OF_MEMORY;
    }
    args.workspace = own_.get();
    args.workspace_bytes = bytes;
    return ATTN_OK;
  }

 private:
  [[noreturn]] void refuse(const char* expected) const {
    PyErr_Format(PyExc_ValueError, "%s: expected workspace to have %s", function_, expected);
    throw nb::python_error();
  }

  const char* const function_;
  const TensorArg given_;
  const bool is_on_gpu_;
  std::unique_ptr<char[]> own_;
};

// Asks how many bytes of workspace the call takes, makes it unless it is a dry run, and returns how
// many.
template <class Args>
size_t run_with_workspace(Args& args,
                          attn_status (*query)(const Args*, size_t*, attn_error*) noexcept,
                          attn_status (*call)(const Args*, attn_error*) noexcept,
                          Workspace& workspace, bool dry_run) {
  size_t bytes = 0;
  run_without_gil([&](attn_error& error) {
    attn_status status = query(&args, &bytes, &error);
    if (status != ATTN_OK || dry_run) return status;
    status = workspace.lend(args, bytes, error);
    return status == ATTN_OK ? call(&args, &error) : status;
  });
  return bytes;
}

size_t attention_forward(nb::handle query, nb::handle key, nb::handle value, nb::handle out,
                         nb::handle lse, nb::handle bias, int64_t band_left, int64_t band_right,
                         int32_t band_anchor, double dropout_p, uint64_t dropout_seed,
                         uint64_t dropout_offset, std::optional<double> scale, int32_t num_threads,
                         std::optional<uint64_t> stream, nb::handle workspace, bool dry_run) {
  const TensorArg query_arg(kForward, "query", query, Access::kRead);
  const TensorArg key_arg(kForward, "key", key, Access::kRead);
  const TensorArg value_arg(kForward, "value", value, Access::kRead);
  const TensorArg out_arg(kForward, "out", out, Access::kWrite);
  const TensorArg lse_arg(kForward, "lse", lse, Access::kWrite);
  const TensorArg bias_arg(kForward, "bias", bias, Access::kRead);
  const attn_mask mask = make_mask(bias_arg, band_left, band_right, band_anchor, dropout_p,
                                   dropout_seed, dropout_offset);
  const attn_exec exec = make_exec(num_threads, stream, query_arg);

  attn_attention_forward_args args = ATTN_ATTENTION_FORWARD_INIT;
  args.query = query_arg.get();
  args.key = key_arg.get();
  args.value = value_arg.get();
  args.mask = &mask;
  args.scale = scale.value_or(ATTN_SCALE_DEFAULT);
  args.out = out_arg.get();
  args.lse = lse_arg.get();
  args.exec = &exec;

  Workspace memory(kForward, workspace, query_arg);
  return run_with_workspace(args, &attn_attention_forward_workspace, &attn_attention_forward,
                            memory, dry_run);
}

size_t attention_backward(nb::handle query, nb::handle key, nb::handle value, nb::handle out,
                          nb::handle lse, nb::handle grad_out, nb::handle grad_lse,
                          nb::handle grad_query, nb::handle grad_key, nb::handle grad_value,
                          nb::handle grad_bias, nb::handle bias, int64_t band_left,
                          int64_t band_right, int32_t band_anchor, double dropout_p,
                          uint64_t dropout_seed, uint64_t dropout_offset,
                          std::optional<double> scale, int32_t num_threads,
                          std::optional<uint64_t> stream, nb::handle workspace, bool dry_run) {
  const TensorArg query_arg(kBackward, "query", query, Access::kRead);
  const TensorArg key_arg(kBackward, "key", key, Access::kRead);
  const TensorArg value_arg(kBackward, "value", value, Access::kRead);
  const TensorArg out_arg(kBackward, "out", out, Access::kRead);
  const TensorArg lse_arg(kBackward, "lse", lse, Access::kRead);
  const TensorArg grad_out_arg(kBackward, "grad_out", grad_out, Access::kRead);
  const TensorArg grad_lse_arg(kBackward, "grad_lse", grad_lse, Access::kRead);
  const TensorArg grad_query_arg(kBackward, "grad_query", grad_query, Access::kWrite);
  const TensorArg grad_key_arg(kBackward, "grad_key", grad_key, Access::kWrite);
  const TensorArg grad_value_arg(kBackward, "grad_value", grad_value, Access::kWrite);
  const TensorArg grad_bias_arg(kBackward, "grad_bias", grad_bias, Access::kWrite);
  const TensorArg bias_arg(kBackward, "bias", bias, Access::kRead);
  const attn_mask mask = make_mask(bias_arg, band_left, band_right, band_anchor, dropout_p,
                                   dropout_seed, dropout_offset);
  const attn_exec exec = make_exec(num_threads, stream, query_arg);

  attn_attention_backward_args args = ATTN_ATTENTION_BACKWARD_INIT;
  args.query = query_arg.get();
  args.key = key_arg.get();
  args.value = value_arg.get();
  args.mask = &mask;
  args.scale = scale.value_or(ATTN_SCALE_DEFAULT);
  args.out = out_arg.get();
  args.lse = lse_arg.get();
  args.grad_out = grad_out_arg.get();
  args.grad_lse = grad_lse_arg.get();
  args.grad_query = grad_query_arg.get();
  args.grad_key = grad_key_arg.get();
  args.grad_value = grad_value_arg.get();
  args.grad_bias = grad_bias_arg.get();
  args.exec = &exec;

  Workspace memory(kBackward, workspace, query_arg);
  return run_with_workspace(args, &attn_attention_backward_workspace, &attn_attention_backward,
                            memory, dry_run);
}

constexpr const char* kForwardDoc =
    R"(Write exact attention of `query` over `key` and `value` into `out`, and its lse into `lse`.

Shapes: query [B, Mq, Hq, K]; key [B, Mkv, Hkv, K]; value [B, Mkv, Hkv, Kv]; out [B, Mq, Hq, Kv];
    lse [B, Hq, Mq]; bias broadcastable to [B, Hq, Mq, Mkv]. Hq is a multiple of Hkv.
Units: band_left, band_right in keys each side of the diagonal, UNBOUNDED for no limit; scale
    dimensionless, None for K**-0.5.
Dtypes: query, key and value alike: float32, bfloat16, float16 or float64; lse float32 (float64
    for float64); bias the query's, float32, or bool (true keeps a key).
Numerics: softmax in float32 (float64 for float64); a query that sees no key gives out 0 and lse
    -inf. No autograd.
On a GPU: the call is queued on `stream`, a cudaStream_t as an integer, by default the one that
    query's framework works on: that of DLPack's exchange table (torch), or else the legacy default
    stream, on which arrays with __dlpack__ are ready. It works in `workspace`, an array [bytes] of
    uint8 on the same device, which on the CPU is optional.
Returns: the bytes of workspace that the call takes; with `dry_run` that is all it does.
Raises: TypeError if an argument is no array or `out` is read-only; ValueError, naming the
    argument, for shapes, dtypes and strides that do not fit, or too little workspace;
    NotImplementedError if no kernel does it. Nothing is copied, and nothing is written unless the
    call succeeds.)";

constexpr const char* kBackwardDoc =
    R"(Write the gradients of sum(grad_out * out) + sum(grad_lse * lse) into each grad_* that is given.

Shapes: as in attention_forward; grad_out as out; grad_lse as lse; grad_query, grad_key, grad_value
    and grad_bias as query, key, value and bias, in their dtypes. grad_bias is summed over the axes
    the bias broadcasts.
Units, numerics, GPUs, returns, raises: as in attention_forward. `out` and `lse` are the forward's,
    and so are bias, band, dropout and scale.)";

}  // namespace

void bind_attention(nb::module_& module) {
  module.attr("UNBOUNDED") = ATTN_UNBOUNDED;
  module.attr("ANCHOR_TOP_LEFT") = ATTN_ANCHOR_TOP_LEFT;
  module.attr("ANCHOR_BOTTOM_RIGHT") = ATTN_ANCHOR_BOTTOM_RIGHT;

  module.def("attention_forward", &attention_forward, "query"_a.none(), "key"_a.none(),
             "value"_a.none(), "out"_a.none(), "lse"_a = nb::none(), nb::kw_only(),
             "bias"_a = nb::none(), "band_left"_a = ATTN_UNBOUNDED, "band_right"_a = ATTN_UNBOUNDED,
             "band_anchor"_a = ATTN_ANCHOR_TOP_LEFT, "dropout_p"_a = 0.0, "dropout_seed"_a = 0,
             "dropout_offset"_a = 0, "scale"_a = nb::none(), "num_threads"_a = 0,
             "stream"_a = nb::none(), "workspace"_a = nb::none(), "dry_run"_a = false,
             nb::sig("def attention_forward(query: Array, key: Array, value: Array, out: Array, "
                     "lse: Array | None = None, *, bias: Array | None = None, "
                     "band_left: int = UNBOUNDED, band_right: int = UNBOUNDED, "
                     "band_anchor: int = ANCHOR_TOP_LEFT, dropout_p: float = 0.0, "
                     "dropout_seed: int = 0, dropout_offset: int = 0, "
                     "scale: float | None = None, num_threads: int = 0, stream: int | None = None, "
                     "workspace: Array | None = None, dry_run: bool = False) -> int"),
             kForwardDoc);

  module.def("attention_backward", &attention_backward, "query"_a.none(), "key"_a.none(),
             "value"_a.none(), "out"_a.none(), "lse"_a.none(), "grad_out"_a.none(), nb::kw_only(),
             "grad_lse"_a = nb::none(), "grad_query"_a = nb::none(), "grad_key"_a = nb::none(),
             "grad_value"_a = nb::none(), "grad_bias"_a = nb::none(), "bias"_a = nb::none(),
             "band_left"_a = ATTN_UNBOUNDED, "band_right"_a = ATTN_UNBOUNDED,
             "band_anchor"_a = ATTN_ANCHOR_TOP_LEFT, "dropout_p"_a = 0.0, "dropout_seed"_a = 0,
             "dropout_offset"_a = 0, "scale"_a = nb::none(), "num_threads"_a = 0,
             "stream"_a = nb::none(), "workspace"_a = nb::none(), "dry_run"_a = false,
             nb::sig("def attention_backward(query: Array, key: Array, value: Array, out: Array, "
                     "lse: Array, grad_out: Array, *, grad_lse: Array | None = None, "
                     "grad_query: Array | None = None, grad_key: Array | None = None, "
                     "grad_value: Array | None = None, grad_bias: Array | None = None, "
                     "bias: Array | None = None, band_left: int = UNBOUNDED, "
                     "band_right: int = UNBOUNDED, band_anchor: int = ANCHOR_TOP_LEFT, "
                     "dropout_p: float = 0.0, dropout_seed: int = 0, dropout_offset: int = 0, "
                     "scale: float | None = None, num_threads: int = 0, stream: int | None = None, "
                     "workspace: Array | None = None, dry_run: bool = False) -> int"),
             kBackwardDoc);
}

}  // namespace attn::python
