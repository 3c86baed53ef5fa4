"""Linformer: attention over a fixed number of learned mixtures of the keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from attn_modules._inputs import attend, read_inputs
from attn_modules.attention import Attention
from attn_modules.registry import register_attention
from attn_ops.scalars import check_counts

if TYPE_CHECKING:
    from torch import Tensor

    from attn_modules.attention_mask import AttentionMask


@register_attention("linformer")
class LinformerAttention(Attention):
    """Compute softmax(q (E k)^T / sqrt(K)) (F v) with learned E and F, one for all heads.

    Dropout drops probabilities.

    Shapes: as `Attention`, Mq = Mkv <= seq_len. State: `E.weight` and `F.weight` [k, seq_len].
    Cost: time O(M k K), memory beyond inputs and outputs O(k K) per head, and a copy of k and v
        where there is padding.
    seq_len: the largest length. Shorter inputs use the first columns of E and F.
    k: the number of mixtures, default seq_len // 4.
    Padded keys and values count as 0, as those beyond a shorter input do; a mixture of nothing
    but padding is 0 and is attended like any other.
    Raises: ValueError if `seq_len` or `k` is not positive, or an input is longer than `seq_len`.
    Source: Wang et al. 2020, arXiv:2006.04768, eq. 7.
    """

    supports_head_dimension = True
    supports_key_padding_mask = True
    supports_attention_mask = False
    requires_same_k_q_dimensions = True

    def __init__(self, dropout: float, seq_len: int, k: int | None = None) -> None:
        super().__init__(dropout)
        check_counts("LinformerAttention", seq_len=seq_len)
        self.seq_len = seq_len
        self.k = max(seq_len // 4, 1) if k is None else k
        check_counts("LinformerAttention", k=self.k)
        self.E = nn.Linear(seq_len, self.k, bias=False)
        self.F = nn.Linear(seq_len, self.k, bias=False)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        att_mask: Tensor | AttentionMask | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the attended values; see `Attention.forward`."""
        if k.shape[-2] > self.seq_len:
            raise ValueError(
                f"LinformerAttention: expected at most seq_len={self.seq_len} keys, got "
                f"{k.shape[-2]}; make it with a larger seq_len"
            )
        inputs = read_inputs(self, q, k, v, att_mask, key_padding_mask)
        kept = inputs.kept_rows()
        keys = _mix(self.E.weight, inputs.k, kept)
        values = _mix(self.F.weight, inputs.v, kept)
        out = attend(inputs.q, keys, values, pattern=None, bias=None, p=self.active_dropout)
        return inputs.restore(out)

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        return f"seq_len={self.seq_len}, k={self.k}, {super().extra_repr()}"


def _mix(weight: Tensor, rows: Tensor, kept: Tensor | None) -> Tensor:
    """Return mixtures [B, k, H, K] of the kept rows [B, M, H, K], by a weight [k, seq_len]."""
    if kept is not None:
        rows = rows.masked_fill(~kept, 0.0)
    return (weight[:, : rows.shape[1]] @ rows.transpose(1, 2)).transpose(1, 2)
