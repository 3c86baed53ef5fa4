"""Local attention: a window of keys around each query."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attn_modules._inputs import attend, read_inputs
from attn_modules.attention import Attention
from attn_modules.registry import register_attention
from attn_ops.fmha.attn_bias import LocalAttentionFromBottomRightMask
from attn_ops.scalars import check_counts

if TYPE_CHECKING:
    from torch import Tensor

    from attn_modules.attention_mask import AttentionMask


@register_attention("local")
class LocalAttention(Attention):
    """Compute softmax(q k^T / sqrt(K)) v over the keys near each query, exactly.

    With w = window_size, query i sees the keys |i - j| <= (w - 1) / 2, its own in the middle; or
    if causal those 0 <= i - j <= w: w + 1 of them, its own and w before it, as in xFormers. At
    the ends the window is cut off.

    Shapes: as `Attention`, Mq = Mkv = M.
    Cost: time O(M w K), memory beyond inputs and outputs O(M): kernels evaluate the band.
    causal: query i sees no key after its own.
    window_size: odd, unless it is causal.
    force_sparsity: changes nothing, for what lies outside the window is never computed.
    Raises: ValueError if `window_size` is less than 1, or even and not causal.
    Source: Roy et al. 2020, arXiv:2003.05997; Beltagy et al. 2020, arXiv:2004.05150, section 3.1;
        Zaheer et al. 2020, arXiv:2007.14062.
    """

    supports_head_dimension = True
    supports_key_padding_mask = True
    requires_same_k_q_dimensions = True

    def __init__(
        self,
        dropout: float = 0.0,
        causal: bool = False,
        window_size: int = 5,
        force_sparsity: bool = False,
    ) -> None:
        super().__init__(dropout)
        check_counts("LocalAttention", window_size=window_size)
        if window_size % 2 == 0 and not causal:
            raise ValueError(
                "LocalAttention: expected an odd window_size if it is not causal, so that both "
                f"sides are alike, got {window_size}"
            )
        self.causal = causal
        self.window_size = window_size
        self.force_sparsity = force_sparsity

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        att_mask: Tensor | AttentionMask | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the attended values; see `Attention.forward`."""
        inputs = read_inputs(self, q, k, v, att_mask, key_padding_mask)
        reach = self.window_size // 2
        before, after = (self.window_size, 0) if self.causal else (reach, reach)
        out = attend(
            inputs.q,
            inputs.k,
            inputs.v,
            pattern=LocalAttentionFromBottomRightMask(before, after),
            bias=inputs.bias(),
            p=self.active_dropout,
        )
        return inputs.restore(out)

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        return f"window_size={self.window_size}, {super().extra_repr()}"
