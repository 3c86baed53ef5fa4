"""Lambda layers: the context as linear maps, one for its content and one for each position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attn_modules._differentiable import are_transforms_active
from attn_modules._inputs import read_inputs
from attn_modules.attention import Attention
from attn_modules.registry import register_attention
from attn_ops.scalars import check_counts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attn_modules.attention_mask import AttentionMask

_QUERIES_AT_ONCE = 64


@register_attention("lambda")
class LambdaLayer(Attention):
    """Apply to query n the linear map softmax(k)^T v + sum over m of r[m - n] v_m^T.

    The softmax runs over the keys, for each channel alone. r, which is learned, tells positions by
    their distance. The second map is applied without being made: q_n (r[m - n] v_m^T) is
    (q_n r[m - n]) v_m, for some queries at a time.

    Shapes: as `Attention`, with K = dim_head; Mq and Mkv at most seq_len, counted from the first.
    Scale: nothing divides by the number of keys, so that the result grows with sqrt(Mkv K): for
        standard normal rows it has a standard deviation of 256 where Mkv = 1024 and K = 64.
        Normalise after it, as the residual networks do into which the paper puts it.
    Numerics: float32, float64 for float64 inputs; the result in the dtype of `q`.
    Cost: with c = 64, time O(Mq Mkv (K + Kv)), memory beyond inputs and outputs O(c Mkv), for each
        head; the backward pass computes scores anew.
    seq_len: the greatest length.
    dim_head: K.
    dropout: the probability of dropping an element of the result.
    state_dict: `rel_pos_emb` [2 * seq_len - 1, dim_head], whose row m - n + seq_len - 1 is
        r[m - n]; drawn from the standard normal distribution, as in xFormers.
    Raises: ValueError if an argument is not positive, or an input is longer or of another width.
    Source: Bello 2021, arXiv:2102.08602, section 2.2.
    """

    supports_head_dimension = True
    supports_attention_mask = False
    supports_key_padding_mask = True

    def __init__(self, seq_len: int, dim_head: int, *, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        check_counts("LambdaLayer", seq_len=seq_len, dim_head=dim_head)
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
            distances = self.rel_pos_emb.to(dtype)
            # Transforms of torch.func, which such a function stops, see through plain arithmetic.
            apply = _apply_at_once if are_transforms_active() else _PositionMaps.apply
            out = queries @ content + apply(queries, distances, values)
        out = out.transpose(1, 2).to(q.dtype)
        return inputs.restore(functional.dropout(out, self.active_dropout))

    def _check(self, q: Tensor, k: Tensor) -> None:
        if q.shape[-1] != self.dim_head or max(q.shape[-2], k.shape[-2]) > self.seq_len:
            raise ValueError(
                f"LambdaLayer: expected q and k of width dim_head={self.dim_head} and at most "
                f"seq_len={self.seq_len} rows, got {list(q.shape)} and {list(k.shape)}"
            )

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        return f"seq_len={self.seq_len}, dim_head={self.dim_head}, {super().extra_repr()}"


class _PositionMaps(torch.autograd.Function):
    """The sum over m of (q_n distances[m - n + L - 1]) v_m, scores made anew for the gradient.

    Shapes: q [B, H, Mq, K]; distances [2 * L - 1, K]; v [B, H, Mkv, Kv]; result [B, H, Mq, Kv].
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  torch's own annotation
        q: Tensor,
        distances: Tensor,
        v: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(q, distances, v)
        out = q.new_empty((*q.shape[:3], v.shape[3]))
        for rows, seen in _blocks(q, distances, v):
            out[:, :, rows] = _scores(q[:, :, rows], distances[seen]) @ v
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        (grad_out,) = grad_outputs
        q, distances, v = ctx.saved_tensors
        dq, ddistances, dv = (torch.zeros_like(x) for x in (q, distances, v))
        with torch.autocast(q.device.type, enabled=False):
            for rows, seen in _blocks(q, distances, v):
                grad = grad_out[:, :, rows]
                dv += _scores(q[:, :, rows], distances[seen]).transpose(2, 3) @ grad
                by_distance = _by_distance(grad @ v.transpose(2, 3))
                dq[:, :, rows] = by_distance @ distances[seen]
                ddistances[seen] += (by_distance.transpose(2, 3) @ q[:, :, rows]).sum((0, 1))
        return dq, ddistances, dv


def _apply_at_once(q: Tensor, distances: Tensor, v: Tensor) -> Tensor:
    """Do what `_PositionMaps` does, but keep the scores of all queries for the gradient."""
    nearest = (distances.shape[0] + 1) // 2 - q.shape[2]
    return _scores(q, distances[nearest : nearest + q.shape[2] + v.shape[2] - 1]) @ v


def _blocks(q: Tensor, distances: Tensor, v: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield some queries, and the distances at which they see the keys, in the keys' order.

    The first distance is that of the block's last query from key 0.
    """
    seq_len = (distances.shape[0] + 1) // 2
    for first in range(0, q.shape[2], _QUERIES_AT_ONCE):
        end = min(first + _QUERIES_AT_ONCE, q.shape[2])
        nearest = seq_len - end
        yield slice(first, end), slice(nearest, nearest + end - first + v.shape[2] - 1)


def _scores(q: Tensor, distances: Tensor) -> Tensor:
    """Return q_n distances[m - n + n' - 1] for n' queries: [B, H, n', Mkv].

    Shapes: q [B, H, n', K]; distances [n' + Mkv - 1, K].
    """
    queries, width = q.shape[2], distances.shape[0]
    by_distance = functional.pad(q @ distances.transpose(0, 1), (0, 1))
    # Row n is wanted from entry n' - 1 - n on. Read as rows that are one entry shorter, from entry
    # n' - 1 of the first on, each row slides by one more.
    slid = by_distance.flatten(2)[..., queries - 1 : queries - 1 + queries * width]
    return slid.unflatten(2, (queries, width))[..., : width - queries + 1]


def _by_distance(scores: Tensor) -> Tensor:
    """Return [B, H, n', n' + Mkv - 1], whose entry m - n + n' - 1 is the score [n, m], else 0."""
    queries, keys = scores.shape[2:]
    slid = functional.pad(scores, (0, queries - 1)).flatten(2)
    rows = functional.pad(slid, (queries - 1, 1)).unflatten(2, (queries, queries + keys))
    return rows[..., :-1]
