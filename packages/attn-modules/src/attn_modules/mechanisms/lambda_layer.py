"""Lambda layers: the context as linear maps, one for its content and one for each position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from attn_modules._inputs import read_inputs
from attn_modules.attention import Attention
from attn_modules.registry import register_attention

if TYPE_CHECKING:
    from attn_modules.attention_mask import AttentionMask

_QUERIES_AT_ONCE = 64


@register_attention("lambda")
class LambdaLayer(Attention):
    """Apply to query n the linear map softmax(k)^T v + sum over m of r[m - n] v_m^T.

    The softmax runs over the keys, for each channel alone. r, which is learned, tells positions by
    their distance. The second map is applied without being made: q_n (r[m - n] v_m^T) is
    (q_n r[m - n]) v_m, for some queries at a time.

    Shapes: as `Attention`, with K = dim_head; Mq and Mkv at most seq_len, counted from the first.
    Numerics: float32, float64 for float64 inputs; the result in the dtype of `q`.
    Cost: with c = 64, time O(Mq Mkv (K + Kv)), memory beyond inputs and outputs O(c Mkv), for each
        head; the backward pass computes scores anew.
    seq_len: the greatest length.
    dim_head: K.
    dropout: the probability of dropping an element of the result.
    state_dict: `rel_pos_emb` [2 * seq_len - 1, dim_head], whose row m - n + seq_len - 1 is
        r[m - n].
    Raises: ValueError if an argument is not positive, or an input is longer or of another width.
    Source: Bello 2021, arXiv:2102.08602, section 2.2.
    """

    supports_head_dimension = True
    supports_attention_mask = False
    supports_key_padding_mask = True

    def __init__(self, seq_len: int, dim_head: int, *, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        if seq_len < 1 or dim_head < 1:
            raise ValueError(
                "LambdaLayer: expected seq_len and dim_head of at least 1, got "
                f"seq_len={seq_len} and dim_head={dim_head}"
            )
        self.seq_len = int(seq_len)
        self.dim_head = int(dim_head)
        self.rel_pos_emb = nn.Parameter(torch.randn(2 * self.seq_len - 1, self.dim_head))

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        att_mask: Tensor | AttentionMask | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the mapped queries; see `Attention.forward`."""
        self._check(q, k)
        inputs = read_inputs(self, q, k, v, att_mask, key_padding_mask)
        kept = inputs.keep
        # Autocast would take its products, and with them the sums over keys, to half precision.
        with torch.autocast(q.device.type, enabled=False):
            dtype = torch.promote_types(q.dtype, torch.float32)
            queries, keys, values = (
                x.transpose(1, 2).to(dtype) for x in (inputs.q, inputs.k, inputs.v)
            )
            if kept is not None:
                columns = kept.transpose(2, 3)
                keys = keys.masked_fill(~columns, torch.finfo(dtype).min)
                values = values.masked_fill(~columns, 0.0)
            content = keys.softmax(dim=2).transpose(2, 3) @ values
            out = queries @ content + self._apply_positions(queries, values)
        out = out.transpose(1, 2).to(q.dtype)
        return inputs.restore(functional.dropout(out, self.active_dropout))

    def _apply_positions(self, q: Tensor, v: Tensor) -> Tensor:
        """Return q_n applied to the positions' maps: [B, H, Mq, Kv] of q and v [B, H, M, ...]."""
        distances = self.rel_pos_emb.to(q.dtype)
        parts = []
        for first in range(0, q.shape[2], _QUERIES_AT_ONCE):
            rows = q[:, :, first : first + _QUERIES_AT_ONCE]
            # The last of these queries is the furthest before key 0.
            nearest = self.seq_len - first - rows.shape[2]
            seen = distances[nearest : nearest + rows.shape[2] + v.shape[2] - 1]
            parts.append(checkpoint(_apply_distances, rows, seen, v, use_reentrant=False))
        return torch.cat(parts, dim=2)

    def _check(self, q: Tensor, k: Tensor) -> None:
        if q.shape[-1] != self.dim_head or max(q.shape[-2], k.shape[-2]) > self.seq_len:
            raise ValueError(
                f"LambdaLayer: expected q and k of width dim_head={self.dim_head} and at most "
                f"seq_len={self.seq_len} rows, got {list(q.shape)} and {list(k.shape)}"
            )

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        return f"seq_len={self.seq_len}, dim_head={self.dim_head}, {super().extra_repr()}"


def _apply_distances(q: Tensor, distances: Tensor, v: Tensor) -> Tensor:
    """Return sum over m of (q_n distances[m - n + Mq - 1]) v_m.

    Shapes: q [B, H, Mq, K]; distances [Mq + Mkv - 1, K]; v [B, H, Mkv, Kv].
    """
    queries, keys = q.shape[2], v.shape[2]
    by_distance = q @ functional.pad(distances, (0, 0, 0, 1)).transpose(0, 1)
    # Row n of Mq + Mkv is wanted from its entry Mq - 1 - n on: rows one shorter, read one after
    # another, slide each by one more.
    slid = by_distance.flatten(2)[..., queries - 1 : queries - 1 + queries * (queries + keys - 1)]
    scores = slid.unflatten(2, (queries, queries + keys - 1))[..., :keys]
    return scores @ v
