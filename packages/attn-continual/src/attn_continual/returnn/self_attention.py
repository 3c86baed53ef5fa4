"""Self-attention over whole sequences, with RETURNN's parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor, nn

from attn_continual.returnn import tagged_calls
from attn_continual.returnn.dim import Dim, as_dim
from attn_continual.returnn.dot_attention import drop_keys
from attn_continual.returnn.linear import Linear
from attn_continual.returnn.sequences import Sequences, kept_rows
from attn_continual.returnn.tagged_tensor import TaggedTensor
from attn_ops import LowerTriangularFromBottomRightMask, memory_efficient_attention

if TYPE_CHECKING:
    from attn_ops import AttentionBias


class SelfAttentionBase(nn.Module):
    """Hold the projections of multi-head self-attention, and attend with what they give.

    Parameters: `qkv.weight` [in, H (2 dk + dv)], for each head its columns of queries, of keys and
        of values, and `qkv.bias`; `proj.weight` [H dv, proj] and `proj.bias`. Weights are Glorot
        uniform at first, biases 0.
    in_dim: features of the source; sizes are ints or `Dim`s.
    proj_dim: features of the result; None: H dv, without a projection.
    key_dim_total, value_dim_total: H dk and H dv.
    num_heads: H.
    with_bias: of both projections.
    att_dropout: the probability of dropping an attention weight in training.
    att_dropout_broadcast: drop a key for all queries, heads and sequences alike; default False.
    Raises: ValueError if H does not divide the totals.
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
        super().__init__()
        self.in_dim = as_dim(in_dim, "in")
        self.num_heads = as_dim(num_heads, "num_heads")
        self.key_dim_total = as_dim(key_dim_total, "key_dim_total")
        self.value_dim_total = as_dim(value_dim_total, "value_dim_total")
        self.key_dim_per_head = self.key_dim_total.div_left(self.num_heads)
        self.value_dim_per_head = self.value_dim_total.div_left(self.num_heads)
        self.out_dim = self.value_dim_total if proj_dim is None else as_dim(proj_dim, "out")
        self.with_bias = with_bias
        self.att_dropout = att_dropout
        self.att_dropout_broadcast = bool(att_dropout_broadcast)
        total = 2 * self.key_dim_total.size + self.value_dim_total.size
        self.qkv = Linear(self.in_dim.size, total, with_bias=with_bias)
        self.proj = (
            None
            if proj_dim is None
            else Linear(self.value_dim_total.size, self.out_dim.size, with_bias=with_bias)
        )

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
        rows = self.qkv(source).unflatten(-1, (self.num_heads.size, 2 * width + value_width))
        return rows.split([width, width, value_width], dim=-1)

    @overload
    def attention(
        self, q: TaggedTensor, k: TaggedTensor, v: TaggedTensor, *, kv_axis: Dim
    ) -> TaggedTensor: ...

    @overload
    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        kv_axis: int = -3,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor: ...

    def attention(
        self,
        q: Any,
        k: Any,
        v: Any,
        *,
        kv_axis: int | Dim = -3,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Any:
        """Attend, and project: q [*batch, Mq, H, dk], k and v [*batch, Mkv, H, ...] to [..., out].

        lengths: int [*batch]; mask: bool [*batch, Mkv], True keeps a key.
        """
        if isinstance(q, TaggedTensor):
            return tagged_calls.attention(self, q, k, v, kv_axis)
        q, k, v = (x.movedim(int(kv_axis), -3) for x in (q, k, v))
        batch = q.shape[:-3]
        keep = kept_rows(type(self).__name__, k.shape[-3], batch, lengths, mask)
        rows = (x.reshape(math.prod(batch), *x.shape[-3:]) for x in (q, k, v))
        out = self.project(self.attend(*rows, keep=keep))
        return out.reshape(*batch, *out.shape[1:]).movedim(-2, int(kv_axis) + 1)

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
        p = self.att_dropout if self.training else 0.0
        if p > 0 and self.att_dropout_broadcast:
            return drop_keys(value, p, axis=1), 0.0
        return value, p

    def project(self, attended: Tensor) -> Tensor:
        """Return the result [..., out] of attended values [..., H, dv]."""
        rows = attended.flatten(-2)
        return rows if self.proj is None else self.proj(rows)

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        return f"num_heads={self.num_heads.size}, att_dropout={self.att_dropout}"


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
            type(self).__name__, source, int(axis), self.in_dim.size, lengths, mask
        )
        out = self.attend(*self.forward_qkv(sequences.rows), keep=sequences.keep)
        return sequences.restore(self.project(out))
