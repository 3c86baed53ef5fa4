"""Scaled dot-product attention, exact, with any mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attn_modules._inputs import attend, read_inputs
from attn_modules.attention import Attention
from attn_modules.attention_mask import AttentionMask
from attn_modules.registry import register_attention
from attn_ops import LowerTriangularMask

if TYPE_CHECKING:
    from torch import Tensor


@register_attention("scaled_dot_product")
class ScaledDotProduct(Attention):
    """Compute softmax(q k^T / sqrt(K) + mask) v, where dropout drops probabilities.

    Shapes: as `Attention`; any Mq and Mkv.
    Cost: time O(Mq Mkv K), memory beyond inputs and outputs O(Mq).
    causal: query i sees keys j <= i, counted from the first of each.
    seq_len, to_seq_len: what a causal `mask` is made for: longer inputs are refused; shorter ones
        are fine. Default: any length.
    Raises: ValueError if `to_seq_len` comes without `seq_len`.
    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; without the matrix of scores: Rabe &
        Staats 2021, arXiv:2112.05682.
    """

    supports_head_dimension = True
    supports_key_padding_mask = True

    def __init__(
        self,
        dropout: float = 0.0,
        causal: bool = False,
        seq_len: int | None = None,
        to_seq_len: int | None = None,
    ) -> None:
        super().__init__(dropout)
        if to_seq_len is not None and seq_len is None:
            raise ValueError("ScaledDotProduct: expected seq_len together with to_seq_len")
        self.causal = causal
        self.seq_len = seq_len
        self.to_seq_len = seq_len if to_seq_len is None else to_seq_len

    @property
    def mask(self) -> AttentionMask | None:
        """The causal mask for `seq_len`, made when asked for; no call needs it."""
        if not self.causal or self.seq_len is None:
            return None
        return AttentionMask.make_causal(self.seq_len, self.to_seq_len)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        att_mask: Tensor | AttentionMask | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the attended values; see `Attention.forward`."""
        self._check_lengths(q.shape[-2], k.shape[-2])
        inputs = read_inputs(self, q, k, v, att_mask, key_padding_mask)
        pattern = LowerTriangularMask() if self.causal else None
        out = attend(
            inputs.q,
            inputs.k,
            inputs.v,
            pattern=pattern,
            bias=inputs.bias(),
            p=self.active_dropout,
        )
        return inputs.restore(out)

    def _check_lengths(self, queries: int, keys: int) -> None:
        if not self.causal or self.seq_len is None or self.to_seq_len is None:
            return
        if queries > self.seq_len or keys > self.to_seq_len:
            raise ValueError(
                f"ScaledDotProduct: expected at most seq_len={self.seq_len} queries and "
                f"to_seq_len={self.to_seq_len} keys, got {queries} and {keys}"
            )
