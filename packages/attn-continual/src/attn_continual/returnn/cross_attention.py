"""Attention from one sequence to another, whose keys and values are computed once."""

from __future__ import annotations

from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from attn_continual.returnn import tagged_calls
from attn_continual.returnn.dim import Dim, as_dim
from attn_continual.returnn.dot_attention import dot_attention
from attn_continual.returnn.linear import Linear
from attn_continual.returnn.tagged_tensor import TaggedTensor


class EncoderState(NamedTuple):
    """The keys and values of an encoder's output."""

    k: Any
    """[*batch, Mkv, H, dk], or tagged"""
    v: Any
    """[*batch, Mkv, H, dv], or tagged"""
    kv_axis: Any
    """The axis of time in both, -3; or a `Dim`."""
    keep: Tensor | None = None
    """bool [*batch, Mkv]: False is padding; a `Dim` has lengths instead."""


class CrossAttention(nn.Module):
    """Attend from every place of a sequence, or from one step, to an encoder's output.

    Parameters: `kv.weight` [encoder, H (dk + dv)], for each head its columns of keys and of values,
        `q.weight` [query, H dk], `proj.weight` [H dv, proj], and biases. Weights are Glorot
        uniform at first, kv's times sqrt(3/4), q's times sqrt(1/2); biases 0.
    encoder_dim, query_in_dim: features of the encoder's output and of the queries' source.
    The rest: see `SelfAttentionBase`.

    >>> attention = CrossAttention(6, 8, 8, key_dim_total=8, value_dim_total=8, num_heads=2)
    >>> encoder = attention.transform_encoder(torch.randn(3, 5, 6), axis=1)
    >>> attention(torch.randn(3, 4, 8), encoder).shape, attention(torch.randn(3, 8), encoder).shape
    (torch.Size([3, 4, 8]), torch.Size([3, 8]))
    """

    def __init__(
        self,
        encoder_dim: int | Dim,
        query_in_dim: int | Dim,
        proj_dim: int | Dim | None,
        *,
        key_dim_total: int | Dim,
        value_dim_total: int | Dim,
        num_heads: int | Dim,
        with_bias: bool = True,
        att_dropout: float = 0.1,
        att_dropout_broadcast: bool | None = None,
    ) -> None:
        super().__init__()
        self.encoder_dim = as_dim(encoder_dim, "encoder")
        self.query_in_dim = as_dim(query_in_dim, "query_in")
        self.num_heads = as_dim(num_heads, "num_heads")
        self.key_dim_total = as_dim(key_dim_total, "key_dim_total")
        self.value_dim_total = as_dim(value_dim_total, "value_dim_total")
        self.key_dim_per_head = self.key_dim_total.div_left(self.num_heads)
        self.value_dim_per_head = self.value_dim_total.div_left(self.num_heads)
        self.out_dim = self.value_dim_total if proj_dim is None else as_dim(proj_dim, "out")
        self.att_dropout = att_dropout
        self.att_dropout_broadcast = bool(att_dropout_broadcast)
        width, values = self.key_dim_total.size, self.value_dim_total.size
        self.kv = Linear(self.encoder_dim.size, width + values, with_bias=with_bias, scale=3 / 4)
        self.q = Linear(self.query_in_dim.size, width, with_bias=with_bias, scale=1 / 2)
        self.proj = (
            None if proj_dim is None else Linear(values, self.out_dim.size, with_bias=with_bias)
        )

    def transform_encoder(
        self,
        encoder: Tensor | TaggedTensor,
        *,
        axis: int | Dim = -2,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> EncoderState:
        """Return the keys and values of an encoder's output [*batch, Mkv, encoder].

        axis: that of Mkv, or a dim whose lengths count.
        lengths: int [*batch]; mask: bool [*batch, Mkv], True keeps a key.
        """
        if isinstance(encoder, TaggedTensor):
            encoder.remaining_dims([axis])  # pyright: ignore[reportArgumentType]  refuses an int
            return EncoderState(*self.forward_kv(encoder), axis)
        key, value = self.forward_kv(encoder)
        at = int(axis) % encoder.dim() - encoder.dim() - 1  # heads lie behind it now
        key, value = (x.movedim(at, -3) for x in (key, value))
        keep = mask
        if lengths is not None:
            within = torch.arange(key.shape[-3], device=lengths.device) < lengths[..., None]
            keep = within if mask is None else within & mask
        return EncoderState(key, value, -3, keep)

    @overload
    def forward_kv(self, source: TaggedTensor) -> tuple[TaggedTensor, TaggedTensor]: ...

    @overload
    def forward_kv(self, source: Tensor) -> tuple[Tensor, Tensor]: ...

    def forward_kv(self, source: Any) -> Any:
        """Return keys [..., H, dk] and values [..., H, dv] of a source [..., encoder]."""
        if isinstance(source, TaggedTensor):
            return tagged_calls.cross_attention_keys(self, source)
        widths = [self.key_dim_per_head.size, self.value_dim_per_head.size]
        return self.kv(source).unflatten(-1, (self.num_heads.size, sum(widths))).split(widths, -1)

    @overload
    def forward_query(self, source: TaggedTensor) -> TaggedTensor: ...

    @overload
    def forward_query(self, source: Tensor) -> Tensor: ...

    def forward_query(self, source: Any) -> Any:
        """Return queries [..., H, dk] of a source [..., query]."""
        if isinstance(source, TaggedTensor):
            return tagged_calls.cross_attention_query(self, source)
        heads = (self.num_heads.size, self.key_dim_per_head.size)
        return self.q(source).unflatten(-1, heads)

    def forward(self, q: Any, encoder: EncoderState) -> Any:  # noqa: ANN401  of either kind
        """Return the results [*batch, Mq, out] of a source [*batch, Mq, query].

        q: or [*batch, query], one step; or a tagged tensor with any dims, for a tagged encoder.
        """
        query = self.forward_query(q)
        return self.attention(
            query, encoder.k, encoder.v, kv_axis=encoder.kv_axis, mask=encoder.keep
        )

    def attention(
        self,
        q: Any,  # noqa: ANN401
        k: Any,  # noqa: ANN401
        v: Any,  # noqa: ANN401
        *,
        kv_axis: int | Dim = -3,
        mask: Tensor | None = None,
    ) -> Any:  # noqa: ANN401
        """Attend from queries [*batch, Mq, H, dk], or [*batch, H, dk], and project.

        Shapes: k [*batch, Mkv, H, dk] and v likewise, Mkv at `kv_axis`; mask bool [*batch, Mkv].
        """
        if isinstance(q, TaggedTensor):
            return tagged_calls.attention(self, q, k, v, kv_axis)
        k, v = (x.movedim(int(kv_axis), -2) for x in (k, v))  # [*batch, H, Mkv, ...]
        is_step = q.dim() < k.dim()
        out = dot_attention(
            q if is_step else q.transpose(-2, -3),
            k,
            v,
            att_dropout=self.att_dropout if self.training else 0.0,
            att_dropout_broadcast=self.att_dropout_broadcast,
            mask=None if mask is None else mask[..., None, None, :],
        )
        return self.project(out if is_step else out.transpose(-2, -3))

    def project(self, attended: Tensor) -> Tensor:
        """Return the result [..., out] of attended values [..., H, dv]."""
        rows = attended.flatten(-2)
        return rows if self.proj is None else self.proj(rows)
