"""`dot_attention`: scaled dot-product attention with any batch axes, over one axis of the keys."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol, overload

import torch
from torch import Tensor

from attn_continual.returnn.sequences import INTEGERS, check_fits
from attn_continual.returnn.tagged_dot_attention import attend_tagged
from attn_continual.returnn.tagged_tensor import TaggedTensor
from attn_ops import LowerTriangularMask, memory_efficient_attention
from attn_ops.operands import with_unit_stride

if TYPE_CHECKING:
    from attn_continual.returnn.dim import Dim
    from attn_ops import AttentionBias


class AttentionFunc(Protocol):
    """What `dot_attention` is, and what may stand in its place."""

    def __call__(
        self,
        query: Any,  # noqa: ANN401  torch's tensors or tagged ones
        keys: Any,  # noqa: ANN401
        values: Any,  # noqa: ANN401
        *,
        key_dim: Any,  # noqa: ANN401
        axis: Any,  # noqa: ANN401
        att_dropout: float = 0.0,
        att_dropout_broadcast: bool | None = None,
    ) -> Any:  # noqa: ANN401
        """Return the attended values."""
        ...


@overload
def dot_attention(
    query: TaggedTensor,
    keys: TaggedTensor,
    values: TaggedTensor,
    *,
    key_dim: Dim,
    axis: Dim,
    att_dropout: float = 0.0,
    att_dropout_broadcast: bool | None = None,
    causal_query_spatial_dim: Dim | None = None,
    scale: float | None = None,
) -> TaggedTensor: ...


@overload
def dot_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    key_dim: int = -1,
    axis: int = -2,
    att_dropout: float = 0.0,
    att_dropout_broadcast: bool | None = None,
    causal_query_spatial_dim: int | None = None,
    scale: float | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor: ...


def dot_attention(
    query: Tensor | TaggedTensor,
    keys: Tensor | TaggedTensor,
    values: Tensor | TaggedTensor,
    *,
    key_dim: int | Dim = -1,
    axis: int | Dim = -2,
    att_dropout: float = 0.0,
    att_dropout_broadcast: bool | None = None,
    causal_query_spatial_dim: int | Dim | None = None,
    scale: float | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor | TaggedTensor:
    """Compute softmax(scale * query keys^T) values, the softmax over `axis` of the keys.

    Tagged tensors may have their dims in any order. Dims of the query alone stay, as does `axis`
    if the query has it; dims that it shares with the keys and values are batch; keys beyond the
    lengths of `axis` are not seen.

    Shapes, of torch tensors: query [*batch, Mq, K], or [*batch, K] for one; keys [*batch, Mkv, K];
        values [*batch, Mkv, Kv]; result [*batch, Mq, Kv]. Batch axes, such as that of heads,
        broadcast. M is at `axis`.
    key_dim: the axis K, of torch tensors the last.
    att_dropout: the probability of dropping a weight; always active if positive.
    att_dropout_broadcast: drop a key for all queries and batch elements; default False.
    causal_query_spatial_dim: query i of this axis sees the keys up to i; as many as keys.
    scale: default K ** -0.5.
    lengths: int [*batch]: how many of the keys are seen. mask: bool [*batch, Mq, Mkv], True keeps
        a key. Both broadcast. A query that sees no key gives 0.
    Raises: ValueError if a tensor or an axis does not fit; TypeError for a mixture of both kinds.
    """
    if isinstance(query, TaggedTensor):
        if lengths is not None or mask is not None:
            raise TypeError(
                "dot_attention: expected no lengths and no mask with tagged tensors, whose axis "
                "has lengths"
            )
        return attend_tagged(
            _attend,
            query,
            keys,
            values,
            key_dim,
            axis,
            causal_query_spatial_dim,
            att_dropout=att_dropout,
            att_dropout_broadcast=att_dropout_broadcast,
            scale=scale,
        )
    if isinstance(keys, TaggedTensor) or isinstance(values, TaggedTensor):
        raise TypeError("dot_attention: expected query, keys and values of one kind")
    at = _checked_axis(query, keys, values, key_dim, axis, causal_query_spatial_dim)
    is_single = query.dim() < keys.dim()
    out = _attend(
        query.unsqueeze(-2) if is_single else query.movedim(at, -2),
        keys.movedim(at, -2),
        values.movedim(at, -2),
        keep=_keep(keys.shape[at], lengths, mask),
        is_causal=causal_query_spatial_dim is not None,
        att_dropout=att_dropout,
        att_dropout_broadcast=att_dropout_broadcast,
        scale=scale,
    )
    return out.squeeze(-2) if is_single else out.movedim(-2, at)


def drop_keys(values: Tensor, p: float, axis: int = -2) -> Tensor:
    """Drop whole keys, for all queries alike, by what they would add: the values along `axis`."""
    ones = values.new_ones(
        [n if a == axis % values.dim() else 1 for a, n in enumerate(values.shape)]
    )
    return values * torch.nn.functional.dropout(ones, p)


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    keep: Tensor | None,
    is_causal: bool,
    att_dropout: float,
    att_dropout_broadcast: bool | None,
    scale: float | None,
) -> Tensor:
    """Attend over rows [*batch, M, K]; keep: bool, to broadcast to [*batch, Mq, Mkv]."""
    if att_dropout > 0 and att_dropout_broadcast:
        values, att_dropout = drop_keys(values, att_dropout), 0.0
    batch = _batch_of(query, keys, values)
    if keep is not None:
        pairs = (*batch, query.shape[-2], keys.shape[-2])
        check_fits("dot_attention", "lengths and mask", keep, pairs, (torch.bool,))
    # An empty batch goes in front: the operator wants one head or more.
    folded = (0, 1) if 0 in batch else (math.prod(batch[:-1]), batch[-1] if batch else 1)

    def fold(x: Tensor) -> Tensor:
        return x.expand(*batch, *x.shape[-2:]).reshape(*folded, *x.shape[-2:])

    bias: Tensor | AttentionBias | None = None if keep is None else fold(keep)
    if is_causal:
        bias = LowerTriangularMask() if bias is None else LowerTriangularMask().add_bias(bias)
    rows = [with_unit_stride(fold(x).transpose(1, 2)) for x in (query, keys, values)]
    out = memory_efficient_attention(rows[0], rows[1], rows[2], bias, att_dropout, scale)
    return out.transpose(1, 2).reshape(*batch, query.shape[-2], values.shape[-1])


def _batch_of(*rows: Tensor) -> tuple[int, ...]:
    """Return the batch axes that rows [*batch, M, K] have together.

    Raises: ValueError if they do not broadcast.
    """
    shapes = [x.shape[:-2] for x in rows]
    try:
        return tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError as error:
        raise ValueError(
            "dot_attention: expected batch axes of query, keys and values that broadcast, got "
            f"{', '.join(str(list(shape)) for shape in shapes)}"
        ) from error


def _keep(num_keys: int, lengths: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Return which keys are seen, [*batch, Mq or 1, Mkv], or None."""
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(
                f"dot_attention: expected mask, bool, True keeping a key, got {mask.dtype}"
            )
        mask = mask[(None,) * max(2 - mask.dim(), 0)]
    if lengths is None:
        return mask
    if lengths.dtype not in INTEGERS:
        raise ValueError(f"dot_attention: expected lengths, int, got {lengths.dtype}")
    within = torch.arange(num_keys, device=lengths.device) < lengths[..., None, None]
    return within if mask is None else within & mask


def _checked_axis(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    key_dim: int | Dim,
    axis: int | Dim,
    causal_query_spatial_dim: int | Dim | None,
) -> int:
    """Return the axis of rows, negative.

    Raises: ValueError if it or a shape does not fit.
    """
    axes = keys.dim()
    index = axis if isinstance(axis, int) else axes
    causal = causal_query_spatial_dim is not None
    fits = -axes <= index < axes - 1 and index != -1
    if not fits or key_dim not in (-1, axes - 1) or causal_query_spatial_dim not in (None, axis):
        raise ValueError(
            f"dot_attention: expected axis, an int, and not the last, of keys {list(keys.shape)}, "
            f"key_dim=-1 and causal_query_spatial_dim None or axis, got {axis}, {key_dim} and "
            f"{causal_query_spatial_dim}"
        )
    at = index % axes - axes
    shapes = f"{list(query.shape)}, {list(keys.shape)} and {list(values.shape)}"
    if values.dim() != axes or query.dim() not in ((axes,) if causal else (axes - 1, axes)):
        raise ValueError(
            "dot_attention: expected values with as many axes as keys, and queries with as many "
            f"or, if not causal, one fewer, got {shapes}"
        )
    widths_differ = query.shape[-1] != keys.shape[-1]
    if widths_differ or keys.shape[at] != values.shape[at]:
        raise ValueError(
            "dot_attention: expected queries as wide as keys and as many values as keys, got "
            f"{shapes}"
        )
    if causal and query.shape[at] != keys.shape[at]:
        raise ValueError(
            f"dot_attention: expected as many queries as keys with causal_query_spatial_dim, got "
            f"{shapes}"
        )
    return at
