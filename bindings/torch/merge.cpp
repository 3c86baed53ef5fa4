// Calls the core's merge on torch tensors: finds the chunks, allocates outputs, reports errors.
#include "merge.h"

#include "attn/attn.h"
#include "run.h"

namespace attn_torch {
namespace {

// The chunks of a list of tensors, or of one tensor that has an axis more and stacks them.
class ChunkViews {
 public:
  ChunkViews(const char* name, const std::vector<Tensor>& tensors, int64_t ndim) {
    expect(!tensors.empty(), "merge: expected ", name, " to hold a chunk, got none");
    if (tensors.size() == 1 && tensors[0].dim() == ndim + 1) {
      add_stacked(tensors[0]);
    } else {
      for (const Tensor& tensor : tensors) views_.push_back(view(tensor));
    }
    for (const attn_tensor& chunk : views_) pointers_.push_back(&chunk);
  }

  int64_t count() const { return static_cast<int64_t>(views_.size()); }
  const attn_tensor& first() const { return views_.front(); }
  const attn_tensor* const* pointers() const { return pointers_.data(); }

 private:
  void add_stacked(const Tensor& stacked) {
    const attn_tensor all = view(stacked);
    expect(all.shape[0] > 0, "merge: expected a stack of at least one chunk, got none");
    attn_tensor chunk = all;
    chunk.shape += 1;
    chunk.strides += 1;
    chunk.ndim -= 1;
    for (int64_t c = 0; c < all.shape[0]; ++c) {
      // No address is computed for chunks without elements, which may have no memory.
      if (all.data) {
        chunk.data = static_cast<char*>(all.data) + c * all.strides[0] * (all.dtype.bits / 8);
      }
      views_.push_back(chunk);
    }
  }

  std::vector<attn_tensor> views_;
  std::vector<const attn_tensor*> pointers_;
};

constexpr int64_t kOutDims = 4, kLseDims = 3;

// The two lists of a call as its arguments.
struct Chunks {
  ChunkViews outs, lses;

  Chunks(const std::vector<Tensor>& out_tensors, const std::vector<Tensor>& lse_tensors)
      : outs("chunk_outs", out_tensors, kOutDims), lses("chunk_lses", lse_tensors, kLseDims) {
    expect(outs.count() == lses.count(), "merge: expected as many chunk_lses as ",
           "chunk_outs, got ", lses.count(), " and ", outs.count());
    expect(outs.first().ndim == kOutDims, "merge: expected chunk_outs [B, M, H, Kv], got ",
           outs.first().ndim, " dimensions");
  }

  template <class Args>
  void fill(Args& args) const {
    args.num_chunks = outs.count();
    args.chunk_outs = outs.pointers();
    args.chunk_lses = lses.pointers();
  }
};

std::vector<Tensor> empty_like_each(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(empty_contiguous_like(tensor));
  return result;
}

}  // namespace

std::tuple<Tensor, Tensor> merge(std::vector<Tensor> chunk_outs, std::vector<Tensor> chunk_lses,
                                 std::optional<ScalarType> output_dtype) {
  const Chunks chunks(chunk_outs, chunk_lses);
  const int64_t* shape = chunks.outs.first().shape;
  const ScalarType dtype = chunk_outs[0].scalar_type();
  const Tensor out =
      empty({shape[0], shape[1], shape[2], shape[3]}, output_dtype.value_or(dtype), chunk_outs[0]);
  const Tensor lse =
      empty({shape[0], shape[2], shape[1]},
            dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float, chunk_outs[0]);
  const attn_tensor out_view = view(out), lse_view = view(lse);
  const DeviceOfCall device(chunk_outs[0]);
  const attn_exec exec = device.executor();
  attn_merge_forward_args args = ATTN_MERGE_FORWARD_INIT;
  chunks.fill(args);
  args.out = &out_view;
  args.lse = &lse_view;
  args.exec = &exec;
  attn_error error;
  check(attn_merge_forward(&args, &error), error);
  return {out, lse};
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> merge_backward(
    std::vector<Tensor> chunk_outs, std::vector<Tensor> chunk_lses, const Tensor& grad_out,
    std::optional<Tensor> grad_lse, bool need_outs, bool need_lses) {
  const Chunks chunks(chunk_outs, chunk_lses);
  const std::vector<Tensor> grad_outs =
      need_outs ? empty_like_each(chunk_outs) : std::vector<Tensor>{};
  const std::vector<Tensor> grad_lses =
      need_lses ? empty_like_each(chunk_lses) : std::vector<Tensor>{};
  const attn_tensor grad_out_view = view(grad_out);
  const OptionalView grad_lse_view(grad_lse);
  std::optional<ChunkViews> grad_out_views, grad_lse_views;
  if (need_outs) grad_out_views.emplace("chunk_outs", grad_outs, kOutDims);
  if (need_lses) grad_lse_views.emplace("chunk_lses", grad_lses, kLseDims);
  const DeviceOfCall device(grad_out);
  const attn_exec exec = device.executor();
  attn_merge_backward_args args = ATTN_MERGE_BACKWARD_INIT;
  chunks.fill(args);
  args.grad_out = &grad_out_view;
  args.grad_lse = grad_lse_view.get();
  args.grad_chunk_outs = need_outs ? grad_out_views->pointers() : nullptr;
  args.grad_chunk_lses = need_lses ? grad_lse_views->pointers() : nullptr;
  args.exec = &exec;
  attn_error error;
  check(attn_merge_backward(&args, &error), error);
  return {grad_outs, grad_lses};
}

}  // namespace attn_torch
