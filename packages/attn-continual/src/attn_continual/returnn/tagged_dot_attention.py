"""Dot attention of tagged tensors: their dims tell what is batch, query, key and value."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from attn_continual.returnn.dim import Dim
from attn_continual.returnn.tagged_tensor import TaggedTensor

if TYPE_CHECKING:
    from collections.abc import Callable


class Roles(NamedTuple):
    """The dims of one attention."""

    batch: list[Dim]
    queries: list[Dim]
    values: list[Dim]


def attend_tagged(
    attend: Callable[..., torch.Tensor],
    query: TaggedTensor,
    keys: Any,  # noqa: ANN401  checked
    values: Any,  # noqa: ANN401
    key_dim: Any,  # noqa: ANN401
    axis: Any,  # noqa: ANN401
    causal_query_spatial_dim: Any,  # noqa: ANN401
    **options: Any,  # noqa: ANN401  those of `attend`
) -> TaggedTensor:
    """Attend with `attend`, over rows [*batch, M, K] of torch tensors; see `dot_attention`.

    Raises: TypeError if something is not tagged; ValueError if a dim is missing.
    """
    _check(keys, values, key_dim, axis, causal_query_spatial_dim)
    roles = _roles(query, keys, values, key_dim, axis)
    is_causal = causal_query_spatial_dim is not None
    if is_causal and roles.queries != [causal_query_spatial_dim]:
        raise ValueError(
            f"dot_attention: expected no queries but along {causal_query_spatial_dim} with "
            f"causal_query_spatial_dim, got {roles.queries}"
        )
    sizes = _sizes(query, keys, values)
    out = attend(
        _rows(query, roles.batch, roles.queries, [key_dim]),
        _rows(keys, roles.batch, [axis], [key_dim]),
        _rows(values, roles.batch, [axis], roles.values),
        keep=_mask(axis, roles, sizes),
        is_causal=is_causal,
        **options,
    )
    dims = [*roles.batch, *roles.queries, *roles.values]
    raw = out.reshape([sizes[dim] for dim in dims])
    feature_dim = roles.values[-1] if roles.values else None
    return TaggedTensor("dot_attention", dims, raw_tensor=raw, feature_dim=feature_dim)


def _rows(x: TaggedTensor, batch: list[Dim], rows: list[Dim], features: list[Dim]) -> torch.Tensor:
    """View a tensor as [*batch, rows, features], several dims merged, and none an axis of 1."""
    raw = x.copy_compatible_to_dims_raw([*batch, *rows, *features])
    first, middle = len(batch), len(batch) + len(rows)
    shape = raw.shape
    return raw.reshape(*shape[:first], math.prod(shape[first:middle]), math.prod(shape[middle:]))


def _roles(
    query: TaggedTensor, keys: TaggedTensor, values: TaggedTensor, key_dim: Dim, axis: Dim
) -> Roles:
    """Tell what each dim is; `axis` in the query is the query's own."""
    query.remaining_dims(key_dim)
    of_keys = keys.remaining_dims([axis, key_dim])
    of_values = values.remaining_dims(axis)
    shared = keys.dims_set | query.dims_set
    if axis.lengths is not None:
        shared |= axis.lengths.dims_set
    features = [
        dim for dim in of_values if dim is key_dim or dim is values.feature_dim or dim not in shared
    ]
    batch = of_keys + [dim for dim in of_values if dim not in of_keys and dim not in features]
    own = [dim for dim in query.dims if dim is not key_dim and dim not in batch]
    return Roles(batch, own, features)


def _mask(axis: Dim, roles: Roles, sizes: dict[Dim, int]) -> torch.Tensor | None:
    """Return which keys are within their sequence, bool [*batch, queries or 1, Mkv], or None."""
    if axis.lengths is None:
        return None
    differ = any(dim in axis.lengths.dims for dim in roles.queries)
    lengths = axis.lengths.copy_compatible_to_dims_raw(
        [*roles.batch, *(roles.queries if differ else [])]
    )
    batch = len(roles.batch)
    queries = [sizes[dim] for dim in roles.queries] if differ else [1]
    lengths = lengths.reshape(*lengths.shape[:batch], *(lengths.shape[batch:] or [1]))
    lengths = lengths.expand(*lengths.shape[:batch], *queries).flatten(batch)
    return torch.arange(sizes[axis], device=lengths.device) < lengths[..., None]


def _sizes(*tensors: TaggedTensor) -> dict[Dim, int]:
    """Return the size of each dim.

    Raises: ValueError if one has different sizes.
    """
    sizes: dict[Dim, int] = {}
    for x in tensors:
        for dim, size in zip(x.dims, x.raw_tensor.shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise ValueError(
                    f"dot_attention: expected one size of {dim}, got {sizes[dim]} and {size}"
                )
    return sizes


def _check(keys: object, values: object, key_dim: object, axis: object, causal: object) -> None:
    tensors = all(isinstance(x, TaggedTensor) for x in (keys, values))
    dims = all(isinstance(dim, Dim) for dim in (key_dim, axis))
    if not tensors or not dims or not (causal is None or isinstance(causal, Dim)):
        raise TypeError(
            "dot_attention: expected tagged keys and values, and Dims, with a tagged query, got "
            f"{type(keys)}, {type(values)}, key_dim={key_dim}, axis={axis}"
        )
