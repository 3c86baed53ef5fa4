"""The Visual Attention Network's mixing: images gated by a convolution of large reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from attn_modules._inputs import read_inputs
from attn_modules._square_images import as_images, as_rows, kept_pixels, square_side
from attn_modules.attention import Attention
from attn_modules.registry import register_attention
from attn_ops.scalars import check_counts

if TYPE_CHECKING:
    from attn_modules.attention_mask import AttentionMask


class LKA(nn.Module):
    """Multiply an image by its large-kernel convolution, whose reach is 23 x 23 pixels.

    The kernel is made of three: depthwise 5 x 5, depthwise 7 x 7 of dilation 3, pointwise.

    Shapes: x [B, dim, height, width]; kept, bool, broadcasts against it; the result as x.
    Source: Guo et al. 2022, arXiv:2202.09741, eq. 1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv_spatial = nn.Conv2d(dim, dim, 7, padding=9, dilation=3, groups=dim)
        self.conv1 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return the gated image; a pixel that is not kept is like one beyond the border."""
        near = self.conv0(_blank(x, kept))
        far = self.conv_spatial(_blank(near, kept))
        return x * self.conv1(far)


@register_attention("visual")
class Visual(Attention):
    """Compute q + W_2 LKA(GELU(W_1 q)) on square images, where W_1 and W_2 act on channels.

    The rows of `q` are the pixels of a square image, row by row; `k` and `v` are not read.

    Shapes: q [B, M, dim_model] or [B, H, M, dim_model], M a square; the result likewise.
    Cost: with C = dim_model, time O(M C (C + 74)), memory O(M C).
    dim_model: the number of channels.
    dropout: the probability of dropping an element of W_2's result.
    key_padding_mask: pixels of padding are like those beyond the border, to every convolution;
        their rows of the result are 0.
    state_dict: `block.0` (W_1), `block.2.conv0`, `block.2.conv_spatial`, `block.2.conv1` and
        `block.3` (W_2), each with `.weight` and `.bias`.
    Raises: ValueError if dim_model is not positive or not the width of `q`, or M is not a square.
    Source: Guo et al. 2022, arXiv:2202.09741, eqs. 1-2 and figure 3 (d).
    """

    requires_input_projection = False
    requires_same_k_q_dimensions = True
    requires_skip_multi_head = True
    requires_squared_context = True
    supports_head_dimension = True
    supports_attention_mask = False
    supports_key_padding_mask = True

    def __init__(self, dim_model: int, *, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        check_counts("Visual", dim_model=dim_model)
        self.dim_model = dim_model
        self.block = nn.Sequential(
            nn.Conv2d(dim_model, dim_model, 1),
            nn.GELU(),
            LKA(dim_model),
            nn.Conv2d(dim_model, dim_model, 1),
        )

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        att_mask: Tensor | AttentionMask | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the mixed rows; see `Attention.forward`."""
        if q.shape[-1] != self.dim_model:
            raise ValueError(
                f"Visual: expected q as wide as dim_model={self.dim_model}, got {list(q.shape)}"
            )
        inputs = read_inputs(self, q, k, v, att_mask, key_padding_mask)
        side = square_side("Visual", q.shape[-2])
        if side == 0:  # torch convolves no empty images
            return inputs.restore(inputs.q)
        kept = kept_pixels(inputs, side)
        images = _blank(as_images(inputs.q, side), kept)
        widen, activate, gate, project = self.block
        mixed = project(gate(activate(widen(images)), kept))
        mixed = images + functional.dropout(_blank(mixed, kept), self.active_dropout)
        return inputs.restore(as_rows(mixed, inputs.q.shape[2]))

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        return f"dim_model={self.dim_model}, {super().extra_repr()}"


def _blank(images: Tensor, kept: Tensor | None) -> Tensor:
    return images if kept is None else images.masked_fill(~kept, 0.0)
