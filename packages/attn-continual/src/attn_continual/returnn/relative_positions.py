"""Scores of relative positions beside those of content, for both kinds of self-attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attn_continual.position_attention import attend_by_position
from attn_continual.returnn.learned_positional_encoding import LearnedRelativePositionalEncoding
from attn_continual.returnn.linear import Linear, glorot_uniform
from attn_continual.returnn.position_cache import PositionCache
from attn_continual.returnn.self_attention import SelfAttentionBase
from attn_continual.returnn.sinusoids import relative_frequencies, sinusoids
from attn_ops import memory_efficient_attention
from attn_ops.operands import working_dtype
from attn_ops.scalars import check_probability

if TYPE_CHECKING:
    from attn_continual.returnn.dim import Dim


class RelativePositions(SelfAttentionBase):
    """Score query i and key j by ((q_i + u) . k_j + (q_i + v) . P[j - i]) / sqrt(dk).

    Defaults are those of Transformer-XL, whose paper has no biases of projections; Shaw et al.'s
    keys: `with_bias`, `with_linear_pos`, `with_pos_bias` and `separate_pos_emb_per_head` off,
    `learnable_pos_emb` on. Nothing of size Mq x Mkv is made.

    Parameters, besides those of `SelfAttentionBase`: `linear_pos.weight` [in, H dk], or [in, dk];
        `learned_pos_emb.pos_emb`; `pos_bias_u`, `pos_bias_v` [H, dk], Glorot uniform at first.
    with_linear_pos: P is projected from encodings of `in_dim` features; else it is the encodings.
    with_pos_bias: whether there are u and v.
    learnable_pos_emb: encodings are learned for distances up to `learnable_pos_emb_clipping`; else
        `relative_positional_encoding`.
    separate_pos_emb_per_head: heads have rows P of their own; else all share one.
    pos_emb_dropout: the probability of dropping an encoding's feature in training.
    In evaluation without gradients P is kept until a weight changes, as autograd counts it (writes
    through `.data` are not seen), an optimiser steps, or the layer is in training; compiled graphs
    compute it anew.
    Source: Dai et al. 2019, arXiv:1901.02860, section 3.3; Shaw et al. 2018, arXiv:1803.02155.
    """

    def __init__(
        self,
        in_dim: int | Dim,
        proj_dim: int | Dim | None,
        *,
        key_dim_total: int | Dim,
        value_dim_total: int | Dim,
        num_heads: int | Dim,
        with_bias: bool = True,
        with_linear_pos: bool = True,
        with_pos_bias: bool = True,
        learnable_pos_emb: bool = False,
        learnable_pos_emb_clipping: int = 16,
        separate_pos_emb_per_head: bool = True,
        pos_emb_dropout: float = 0.0,
        att_dropout: float = 0.1,
        **options: Any,  # noqa: ANN401  those of the other base
    ) -> None:
        super().__init__(
            in_dim,
            proj_dim,
            key_dim_total=key_dim_total,
            value_dim_total=value_dim_total,
            num_heads=num_heads,
            with_bias=with_bias,
            att_dropout=att_dropout,
            **options,
        )
        self.separate_pos_emb_per_head = separate_pos_emb_per_head
        check_probability(type(self).__name__, "pos_emb_dropout", pos_emb_dropout)
        self.pos_emb_dropout = pos_emb_dropout
        width = self.key_dim_total if separate_pos_emb_per_head else self.key_dim_per_head
        self.pos_emb_feat_dim = self.in_dim if with_linear_pos else width
        self.linear_pos = (
            Linear(self.in_dim.size, width.size, with_bias=False) if with_linear_pos else None
        )
        self.learned_pos_emb = (
            LearnedRelativePositionalEncoding(
                self.pos_emb_feat_dim, clipping=learnable_pos_emb_clipping
            )
            if learnable_pos_emb
            else None
        )
        if self.learned_pos_emb is None:
            relative_frequencies(self.pos_emb_feat_dim.size, None)  # refuses an odd number
        per_head = (self.num_heads.size, self.key_dim_per_head.size)
        self.pos_bias_u = _position_bias(per_head) if with_pos_bias else None
        self.pos_bias_v = _position_bias(per_head) if with_pos_bias else None
        self._encodings, self._projected = PositionCache(), PositionCache()

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        keep: Tensor | None = None,
        is_causal: bool = False,
        window: int | None = None,
    ) -> Tensor:
        """Attend with scores of positions; see the base."""
        queries, keys = query.shape[1], key.shape[1]
        if queries == 0 or keys == 0:
            return super().attend(query, key, value, keep=keep)
        before = keys - 1 if window is None else min(window, keys) - 1
        table, zero_row = self.table(-before, 0 if is_causal else queries - 1, query)
        value, p = self.dropped(value)
        return attend_by_position(
            _plus(query, self.pos_bias_u),
            key,
            value,
            table,
            position_query=_plus(query, self.pos_bias_v),
            zero_row=zero_row,
            offset=keys - queries,
            window_left=None if window is None else window - 1,
            window_right=0 if is_causal else None,
            keep=None if keep is None else keep[:, None, None],
            p=p,
        )

    def attend_newest(
        self, query: Tensor, key: Tensor, value: Tensor, ages: Tensor, keep: Tensor | None
    ) -> Tensor:
        """Attend from one query with scores of positions; see the base."""
        table, zero_row = self.table(1 - key.shape[1], 0, query)
        rows = table[:, : zero_row + 1]
        count = query.shape[0] * query.shape[2] // rows.shape[0]
        index = (zero_row - ages).clamp(min=0)[:, None, None]
        position_query = _plus(query, self.pos_bias_v)[:, 0].transpose(0, 1).to(rows.dtype)
        with torch.autocast(query.device.type, enabled=False):
            # One product with the row of every age; then each slot looks its own age up.
            by_age = position_query.reshape(rows.shape[0], count, rows.shape[2]) @ rows.mT
            by_age = by_age.view(*position_query.shape[:2], 1, rows.shape[1]).transpose(0, 1)
            bias = by_age.gather(3, index.expand(*by_age.shape[:3], -1))
        bias = bias * query.shape[-1] ** -0.5
        if keep is not None:
            bias = bias.masked_fill(~keep[:, None, None], -torch.inf)
        value, p = self.dropped(value)
        return memory_efficient_attention(_plus(query, self.pos_bias_u), key, value, bias, p)

    def table(self, first: int, last: int, query: Tensor) -> tuple[Tensor, int]:
        """Return P and its row of the distance 0, for distances from `first` to `last` at least.

        Rows beyond them may be missing, or stand for all the distances beyond.
        Shapes: P [H or 1, Z, dk], float64 for such a query, else float32.
        """
        drops = self.training and self.pos_emb_dropout > 0
        if self.learned_pos_emb is not None and not drops:
            clipping = self.learned_pos_emb.clipping
            first, last = -clipping, clipping
        rows = self._position_rows(first, last, drops)
        by_head = rows.unflatten(-1, (-1, self.key_dim_per_head.size)).transpose(0, 1)
        dtype = working_dtype(query.dtype)
        return by_head.to(dtype), -first

    def train(self, mode: bool = True) -> RelativePositions:
        """Set the mode, and forget the rows P that were kept."""
        self._projected.clear()
        return super().train(mode)

    def _position_rows(self, first: int, last: int, drops: bool) -> Tensor:
        """Return P [last - first + 1, H dk or dk], kept if nothing can have changed it."""
        weights = [weight for weight in self._position_weights() if weight is not None]
        # What torch.func or a parametrization puts in a parameter's place has no version.
        are_own = all(isinstance(weight, nn.Parameter) for weight in weights)
        learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
        is_kept = bool(weights) and are_own and not (self.training or learns)
        if not is_kept or torch.compiler.is_compiling():
            return self._make_rows(first, last, drops)
        device = weights[0].device.type
        casts_to = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return self._projected.rows(
            first, last, self._make_rows, weights=weights, settings=casts_to
        )

    def _make_rows(self, first: int, last: int, drops: bool = False) -> Tensor:
        encodings = self._encoding_rows(first, last)
        if drops:
            encodings = nn.functional.dropout(encodings, self.pos_emb_dropout)
        return encodings if self.linear_pos is None else self.linear_pos(encodings)

    def _encoding_rows(self, first: int, last: int) -> Tensor:
        """Return the encodings [last - first + 1, F] of distances."""
        weight = self.qkv.weight
        if self.learned_pos_emb is not None:
            distances = torch.arange(first, last + 1, device=weight.device)
            return self.learned_pos_emb.rows(distances)
        features, device = self.pos_emb_feat_dim.size, weight.device
        dtype = torch.float32
        if self.linear_pos is not None or weight.dtype == torch.float64:
            dtype = weight.dtype

        def make(first: int, last: int) -> Tensor:
            distances = torch.arange(first, last + 1, device=device)
            return sinusoids(distances, relative_frequencies(features, device), dtype)

        return self._encodings.rows(first, last, make, settings=(dtype, device))

    def _position_weights(self) -> tuple[Tensor | None, Tensor | None]:
        linear, learned = self.linear_pos, self.learned_pos_emb
        return (
            None if linear is None else linear.weight,
            None if learned is None else learned.pos_emb,
        )


def _position_bias(shape: tuple[int, int]) -> nn.Parameter:
    bias = nn.Parameter(torch.empty(shape))
    glorot_uniform(bias)
    return bias


def _plus(query: Tensor, bias: Tensor | None) -> Tensor:
    """Add a bias of heads [H, dk] to queries [B, Mq, H, dk]."""
    return query if bias is None else query + bias.to(query.dtype)
