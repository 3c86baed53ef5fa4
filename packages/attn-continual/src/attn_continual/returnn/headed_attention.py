"""What the layers share: the dims of heads, the projection of results, and dropout."""

from __future__ import annotations

from typing import Any, overload

from torch import Tensor, nn

from attn_continual.returnn import tagged_calls
from attn_continual.returnn.dim import Dim, as_dim
from attn_continual.returnn.dot_attention import dot_attention
from attn_continual.returnn.linear import Linear
from attn_continual.returnn.sequences import int_axis
from attn_continual.returnn.tagged_tensor import TaggedTensor
from attn_ops.scalars import check_probability


class HeadedAttention(nn.Module):
    """Attend by heads, and project.

    Parameters: `proj.weight` [H dv, proj] and `proj.bias`, Glorot uniform and 0 at first.
    proj_dim: features of the result; None: H dv, without a projection. Sizes are ints or `Dim`s.
    key_dim_total, value_dim_total: H dk and H dv.
    num_heads: H.
    with_bias: of all projections.
    att_dropout: the probability of dropping an attention weight in training.
    att_dropout_broadcast: drop a key for all queries, heads and sequences alike; default False.
    Raises: ValueError if H does not divide the totals, or `att_dropout` is no probability.
    """

    def __init__(
        self,
        proj_dim: int | Dim | None,
        *,
        key_dim_total: int | Dim,
        value_dim_total: int | Dim,
        num_heads: int | Dim,
        with_bias: bool,
        att_dropout: float,
        att_dropout_broadcast: bool | None,
    ) -> None:
        super().__init__()
        self.num_heads = as_dim(num_heads, "num_heads")
        self.key_dim_total = as_dim(key_dim_total, "key_dim_total")
        self.value_dim_total = as_dim(value_dim_total, "value_dim_total")
        self.key_dim_per_head = self.key_dim_total.div_left(self.num_heads)
        self.value_dim_per_head = self.value_dim_total.div_left(self.num_heads)
        self.out_dim = self.value_dim_total if proj_dim is None else as_dim(proj_dim, "out")
        check_probability(type(self).__name__, "att_dropout", att_dropout)
        self.att_dropout = att_dropout
        self.att_dropout_broadcast = bool(att_dropout_broadcast)
        self.proj = (
            None
            if proj_dim is None
            else Linear(self.value_dim_total.size, self.out_dim.size, with_bias=with_bias)
        )

    @overload
    def attention(
        self, q: TaggedTensor, k: TaggedTensor, v: TaggedTensor, *, kv_axis: Dim
    ) -> TaggedTensor: ...

    @overload
    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, *, kv_axis: int = -3, mask: Tensor | None = None
    ) -> Tensor: ...

    def attention(
        self,
        q: Any,  # of either kind, as k and v
        k: Any,
        v: Any,
        *,
        kv_axis: int | Dim = -3,
        mask: Tensor | None = None,
    ) -> Any:
        """Attend from queries [*batch, Mq, H, dk], or [*batch, H, dk], by content, and project.

        Shapes: k [*batch, Mkv, H, dk], v [*batch, Mkv, H, dv]; M is at `kv_axis`; mask bool
            [*batch, Mkv], True keeps a key; result [*batch, Mq, out], or [*batch, out].
        """
        if isinstance(q, TaggedTensor):
            return tagged_calls.attention(self, q, k, v, kv_axis)
        at = int_axis(type(self).__name__, kv_axis) % k.dim() - k.dim()
        is_step = q.dim() < k.dim()
        out = dot_attention(  # heads become a batch axis, before that of rows
            q if is_step else q.movedim(at, -2),
            k.movedim(at, -2),
            v.movedim(at, -2),
            att_dropout=self.active_dropout,
            att_dropout_broadcast=self.att_dropout_broadcast,
            mask=None if mask is None else mask[..., None, None, :],
        )
        if is_step:
            return self.project(out)
        return self.project(out.transpose(-2, -3)).movedim(-2, at + 1)

    @property
    def active_dropout(self) -> float:
        """The probability of dropping an attention weight now."""
        return self.att_dropout if self.training else 0.0

    def project(self, attended: Tensor) -> Tensor:
        """Return the result [..., out] of attended values [..., H, dv]."""
        rows = attended.flatten(-2)
        return rows if self.proj is None else self.proj(rows)

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        return f"num_heads={self.num_heads.size}, att_dropout={self.att_dropout}"
