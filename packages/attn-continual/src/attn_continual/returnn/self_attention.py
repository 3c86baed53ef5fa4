"""Self-attention over whole sequences, with RETURNN's parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from attn_continual.returnn import tagged_calls
from attn_continual.returnn.dim import Dim, as_dim
from attn_continual.returnn.dot_attention import drop_keys
from attn_continual.returnn.headed_attention import HeadedAttention
from attn_continual.returnn.linear import Linear
from attn_continual.returnn.sequences import Sequences
from attn_continual.returnn.tagged_tensor import TaggedTensor
from attn_ops import LowerTriangularFromBottomRightMask, memory_efficient_attention

if TYPE_CHECKING:
    from torch import Tensor

    from attn_ops import AttentionBias


class SelfAttentionBase(HeadedAttention):
    """Hold the projections of multi-head self-attention, and attend with what they give.

    Parameters, besides those of `HeadedAttention`: `qkv.weight` [in, H (2 dk + dv)], for each head
        its columns of queries, of keys and of values, and `qkv.bias`; Glorot uniform and 0 at
        first.
    in_dim: features of the source; an int or a `Dim`, as the other sizes.
    The rest: see `HeadedAttention`.
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
        self.in_dim = as_dim(in_dim, "in")
        per_head = 2 * self.key_dim_per_head.size + self.value_dim_per_head.size
        self.qkv_dim_per_head = Dim(per_head, name="qkv_dim_per_head")
        self.qkv_dim_total = Dim(per_head * self.num_heads.size, name="qkv_dim_total")
        self.qkv = Linear(self.in_dim.size, self.qkv_dim_total.size, with_bias=with_bias)

    @overload
    def forward_qkv(
        self, source: TaggedTensor
    ) -> tuple[TaggedTensor, TaggedTensor, TaggedTensor]: ...

    @overload
    def forward_qkv(self, source: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...

    def forward_qkv(self, source: Any) -> Any:
        """Return queries, keys [..., H, dk] and values [..., H, dv] of a source [..., in]."""
        if isinstance(source, TaggedTensor):
            return tagged_calls.forward_qkv(self, source)
        width, value_width = self.key_dim_per_head.size, self.value_dim_per_head.size
        heads = (self.num_heads.size, self.qkv_dim_per_head.size)
        rows = self.qkv(source).unflatten(-1, heads)
        return rows.split([width, width, value_width], dim=-1)

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
        """Attend without projections; the last query is at the last key's place.

        Shapes: query [B, Mq, H, dk]; key, value [B, Mkv, H, ...]; keep bool [B, Mkv]; result
            [B, Mq, H, dv].
        is_causal: whether a query sees no keys after its own place.
        window: how many it sees at most, its own included, if causal; None: all.
        """
        value, p = self.dropped(value)
        bias: Tensor | AttentionBias | None = None if keep is None else keep[:, None, None]
        if is_causal:
            causal = LowerTriangularFromBottomRightMask()
            band = causal if window is None else causal.make_local_attention(window)
            bias = band if bias is None else band.add_bias(bias)
        return memory_efficient_attention(query, key, value, bias, p)

    def attend_newest(
        self, query: Tensor, key: Tensor, value: Tensor, ages: Tensor, keep: Tensor | None
    ) -> Tensor:
        """Attend from one query to keys in any order, `ages` steps older than it.

        Shapes: query [B, 1, H, dk]; key, value [B, R, H, ...]; ages int64 and keep bool [B or 1,
            R]; result [B, 1, H, dv].
        """
        del ages  # content knows no positions
        value, p = self.dropped(value)
        bias = None if keep is None else keep[:, None, None]
        return memory_efficient_attention(query, key, value, bias, p)

    def dropped(self, value: Tensor) -> tuple[Tensor, float]:
        """Return values [B, Mkv, H, dv] and the probability with which to drop weights besides."""
        p = self.active_dropout
        if p > 0 and self.att_dropout_broadcast:
            return drop_keys(value, p, axis=1), 0.0
        return value, p


class SelfAttention(SelfAttentionBase):
    """Attend from every place of a sequence to every place.

    Source: Vaswani et al. 2017, arXiv:1706.03762. The rest: see `SelfAttentionBase`.

    >>> attention = SelfAttention(7, 5, key_dim_total=6, value_dim_total=9, num_heads=3)
    >>> attention(torch.randn(2, 4, 7), lengths=torch.tensor([4, 3])).shape
    torch.Size([2, 4, 5])
    """

    @overload
    def __call__(self, source: TaggedTensor, *, axis: Dim) -> TaggedTensor: ...

    @overload
    def __call__(
        self,
        source: Tensor,
        *,
        axis: int = -2,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor: ...

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call `forward`."""
        return super().__call__(*arguments, **named)

    def forward(
        self,
        source: Any,  # noqa: ANN401  of either kind
        *,
        axis: int | Dim = -2,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Any:  # noqa: ANN401
        """Return the results, 0 where there is padding.

        Shapes: source [*batch, T, in], with T at `axis`, to the same with out features; lengths
            int [*batch]; mask bool [*batch, T], True keeps a place.
        source: or a tagged tensor, with `axis` a dim whose lengths count.
        Raises: ValueError if something does not fit.
        """
        if isinstance(source, TaggedTensor):
            return tagged_calls.self_attention(self, source, axis)
        sequences = Sequences.read(
            type(self).__name__, source, axis, self.in_dim.size, lengths, mask
        )
        out = self.attend(*self.forward_qkv(sequences.rows), keep=sequences.keep)
        return sequences.restore(self.project(out))
