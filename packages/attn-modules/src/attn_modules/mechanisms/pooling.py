"""PoolFormer's mixing: the mean of a pixel's neighbourhood, less the pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from attn_modules._inputs import read_inputs
from attn_modules._square_images import as_images, as_rows, kept_pixels, square_side
from attn_modules.attention import Attention
from attn_modules.registry import register_attention
from attn_ops.scalars import check_counts

if TYPE_CHECKING:
    from torch import Tensor

    from attn_modules.attention_mask import AttentionMask


@register_attention("pooling")
class Pooling(Attention):
    """Compute mean(q over a window of pixels) - q at the window's centre; nothing is learned.

    The rows of `q` are the pixels of a square image, row by row; `k` and `v` are not read. Window
    (a, b) begins at pixel (a, b) * stride - padding, and its centre lies pool_size // 2 further.
    Windows whose centre lies in the image, and which reach no further than `padding` beyond its
    borders, count, and of those the pixels in the image.

    Shapes: q [B, M, dim_model] or [B, H, M, K], M a square; the result likewise, with a row for
        each window: M of them if stride is 1 and padding the default.
    Numerics: float32, float64 for float64 inputs; the result in the dtype of `q`.
    Cost: time O(M K pool_size^2), memory O(M K).
    pool_size: side of the window, odd or even.
    stride: pixels from one window to the next.
    padding: pixels beyond the borders that windows may reach; default: pool_size // 2.
    dropout: the probability of dropping an element of the result.
    key_padding_mask: pixels of padding are left out of the means, and are 0 as centres.
    Raises: ValueError if an argument is out of range, or M is not a square.
    Source: Yu et al. 2021, arXiv:2111.11418, eq. 4.
    """

    requires_input_projection = False
    requires_same_k_q_dimensions = True
    requires_skip_multi_head = True
    requires_squared_context = True
    supports_head_dimension = True
    supports_attention_mask = False
    supports_key_padding_mask = True

    def __init__(
        self,
        pool_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dropout)
        check_counts("Pooling", pool_size=pool_size, stride=stride)
        if padding is not None:
            check_counts("Pooling", 0, padding=padding)
        self.pool_size = pool_size
        self.stride = stride
        self.padding = pool_size // 2 if padding is None else padding
        if self.padding > pool_size // 2:
            raise ValueError(
                "Pooling: expected padding of at most pool_size // 2, got "
                f"pool_size={pool_size} and padding={padding}"
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
        inputs = read_inputs(self, q, k, v, att_mask, key_padding_mask)
        side = square_side("Pooling", q.shape[-2])
        images = as_images(inputs.q, side).to(torch.promote_types(q.dtype, torch.float32))
        kept = kept_pixels(inputs, side)
        if kept is None:
            kept = torch.ones((1, 1, side, side), dtype=torch.bool, device=q.device)
        else:
            images = images.masked_fill(~kept, 0.0)
        means = self._sums(images) / self._sums(kept.to(images.dtype)).clamp(min=1.0)
        first = self.pool_size // 2 - self.padding
        centres = images[..., first :: self.stride, first :: self.stride]
        height, width = centres.shape[-2:]
        means = means[..., :height, :width]
        centres = centres[..., : means.shape[-2], : means.shape[-1]]
        mixed = as_rows((means - centres).to(q.dtype), inputs.q.shape[2])
        return inputs.restore(functional.dropout(mixed, self.active_dropout))

    def _sums(self, images: Tensor) -> Tensor:
        """Return the sum over each window; there is none where they exceed an image."""
        side = images.shape[-1]
        if side == 0 or side + 2 * self.padding < self.pool_size:
            return images[..., :0, :0]
        return functional.avg_pool2d(
            images, self.pool_size, self.stride, self.padding, divisor_override=1
        )

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        return (
            f"pool_size={self.pool_size}, stride={self.stride}, padding={self.padding}, "
            f"{super().extra_repr()}"
        )
