// The schemas of torch.ops.attn_ops and their CPU kernels, registered when this library is loaded.
#include <torch/csrc/stable/library.h>

#include "attention.h"
#include "attn/mask.h"

// The schemas spell ATTN_UNBOUNDED and ATTN_ANCHOR_TOP_LEFT out.
static_assert(ATTN_UNBOUNDED == 9223372036854775807 && ATTN_ANCHOR_TOP_LEFT == 0);

// Fake kernels, autograd and autocast rules are attn_ops/_torch_ops.py's. An operator that carries
// no autograd of its own begins with an underscore.
STABLE_TORCH_LIBRARY(attn_ops, m) {
  m.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor? attn_bias=None, float p=0.0, "
      "float? scale=None, *, SymInt band_left=9223372036854775807, "
      "SymInt band_right=9223372036854775807, int band_anchor=0, Tensor? dropout_seed=None, "
      "ScalarType? output_dtype=None) -> Tensor");
  m.def(
      "_attention(Tensor query, Tensor key, Tensor value, Tensor? bias=None, float dropout_p=0.0, "
      "float? scale=None, SymInt band_left=9223372036854775807, "
      "SymInt band_right=9223372036854775807, int band_anchor=0, Tensor? dropout_seed=None, *, "
      "ScalarType? output_dtype=None) -> Tensor");
  m.def(
      "_attention_forward(Tensor query, Tensor key, Tensor value, Tensor? bias, float dropout_p, "
      "float? scale, SymInt band_left, SymInt band_right, int band_anchor, Tensor? dropout_seed, "
      "*, ScalarType? output_dtype=None) -> (Tensor out, Tensor lse)");
  m.def(
      "_attention_backward(Tensor query, Tensor key, Tensor value, Tensor? bias, float dropout_p, "
      "float? scale, SymInt band_left, SymInt band_right, int band_anchor, Tensor? dropout_seed, "
      "Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse, *, bool need_query, "
      "bool need_key, bool need_value, bool need_bias) "
      "-> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias)");
}

STABLE_TORCH_LIBRARY_IMPL(attn_ops, CPU, m) {
  m.impl("attention", TORCH_BOX(&attn_torch::attention));
  m.impl("_attention", TORCH_BOX(&attn_torch::attention));
  m.impl("_attention_forward", TORCH_BOX(&attn_torch::attention_forward));
  m.impl("_attention_backward", TORCH_BOX(&attn_torch::attention_backward));
}
