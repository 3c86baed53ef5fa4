"""FNet's mixing: the real part of a two-dimensional Fourier transform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

from attn_modules._differentiable import differentiable
from attn_modules._inputs import read_inputs
from attn_modules.attention import Attention
from attn_modules.registry import register_attention

if TYPE_CHECKING:
    from torch import Tensor

    from attn_modules.attention_mask import AttentionMask


@register_attention("fourier_mix")
class FourierMix(Attention):
    """Compute Re(F_M q F_K), where F_n[a, b] = exp(-2 pi i a b / n); nothing is learned.

    It mixes the rows of `q` with each other: `k` and `v` are not read. Within a head the second
    transform runs over the head's K channels; the paper's runs over all of the model's, which is
    this with one head.

    Scale: the result grows with sqrt(M K), as the transform is not normalised: for standard normal
        rows its standard deviation is 181 where M = 1024 and K = 64. Normalise after it, as the
        paper does.

    Shapes: as `Attention`, with Mkv = Mq and Kv = K; any lengths.
    Numerics: float32, float64 for float64 inputs; the result in the dtype of `q`.
    Cost: time O(M K (log M + log K)), memory O(M K).
    dropout: the probability of dropping an element of the result.
    key_padding_mask: rows of padding enter as zeros; the length of the transform stays M, so that
        padding differs from leaving rows out.
    Source: Lee-Thorp et al. 2021, arXiv:2105.03824, eq. 3.
    """

    requires_input_projection = False
    requires_same_k_q_dimensions = True
    supports_head_dimension = True
    supports_attention_mask = False
    supports_key_padding_mask = True

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        att_mask: Tensor | AttentionMask | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the mixed rows; see `Attention.forward`."""
        inputs = read_inputs(self, q, k, v, att_mask, key_padding_mask)
        rows, kept = inputs.q, inputs.kept_rows()
        if kept is not None:
            rows = rows.masked_fill(~kept, 0.0)
        rows = rows.to(torch.promote_types(q.dtype, torch.float32))
        mixed = _transform(rows).to(q.dtype)
        return inputs.restore(functional.dropout(mixed, self.active_dropout))


# An operator of its own, because torch.compile generates no code for complex numbers.
torch.library.define("attn_modules::real_fourier", "(Tensor x) -> Tensor")


@torch.library.impl("attn_modules::real_fourier", "CompositeExplicitAutograd")
def _real_fourier(x: Tensor) -> Tensor:
    """Return the real part of the transform of [B, M, H, K] over M and K."""
    if x.numel() == 0:  # torch transforms nothing empty
        return x.new_empty(x.shape)
    return torch.fft.fft2(x, dim=(1, 3)).real.contiguous()


@torch.library.register_fake("attn_modules::real_fourier")
def _real_fourier_extents(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _transform_gradient(_context: object, grad: Tensor) -> Tensor:
    # F_n is symmetric, and so is the real part of the two: the map is its own transpose.
    return _transform(grad)


_transform: Final = differentiable(torch.ops.attn_modules.real_fourier.default, _transform_gradient)
