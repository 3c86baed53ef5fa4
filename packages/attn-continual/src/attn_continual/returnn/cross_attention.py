"""Attention from one sequence to another, whose keys and values are computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, overload

from attn_continual.returnn import tagged_calls
from attn_continual.returnn.dim import Dim, as_dim
from attn_continual.returnn.headed_attention import HeadedAttention
from attn_continual.returnn.linear import Linear
from attn_continual.returnn.sequences import Sequences
from attn_continual.returnn.tagged_tensor import TaggedTensor
from attn_continual.streams import loadable

if TYPE_CHECKING:
    from torch import Tensor


@loadable
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


class CrossAttention(HeadedAttention):
    """Attend from every place of a sequence, or from one step, to an encoder's output.

    Parameters, besides those of `HeadedAttention`: `kv.weight` [encoder, H (dk + dv)], for each
        head its columns of keys and of values, `q.weight` [query, H dk], and biases. Weights are
        Glorot uniform at first, kv's times sqrt(3/4), q's times sqrt(1/2); biases 0.
    encoder_dim, query_in_dim: features of the encoder's output and of the queries' source.
    The rest: see `HeadedAttention`.

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
        super().__init__(
            proj_dim,
            key_dim_total=key_dim_total,
            value_dim_total=value_dim_total,
            num_heads=num_heads,
            with_bias=with_bias,
            att_dropout=att_dropout,
            att_dropout_broadcast=att_dropout_broadcast,
        )
        self.encoder_dim = as_dim(encoder_dim, "encoder")
        self.query_in_dim = as_dim(query_in_dim, "query_in")
        per_head = self.key_dim_per_head.size + self.value_dim_per_head.size
        self.kv_dim_per_head = Dim(per_head, name="kv_dim_per_head")
        self.kv_dim_total = Dim(per_head * self.num_heads.size, name="kv_dim_total")
        encoder, query = self.encoder_dim.size, self.query_in_dim.size
        self.kv = Linear(encoder, self.kv_dim_total.size, with_bias=with_bias, scale=3 / 4)
        self.q = Linear(query, self.key_dim_total.size, with_bias=with_bias, scale=1 / 2)

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
        features = self.encoder_dim.size
        sequences = Sequences.read(type(self).__name__, encoder, axis, features, lengths, mask)
        key, value = (
            x.reshape(*sequences.batch, *x.shape[1:]) for x in self.forward_kv(sequences.rows)
        )
        keep = None if sequences.keep is None else sequences.keep.reshape(key.shape[:-2])
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
        heads = (self.num_heads.size, self.kv_dim_per_head.size)
        return self.kv(source).unflatten(-1, heads).split(widths, dim=-1)

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
