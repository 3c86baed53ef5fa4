"""Distances of keys from queries, in the two generations of RETURNN's signatures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attn_continual.returnn.dim import Dim, as_dim, single_step_dim, size_of
from attn_continual.returnn.tagged_tensor import TaggedTensor

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Distances:
    """Every distance between some queries and keys once, ascending, or of each pair."""

    values: Tensor
    """int64 [*offset, Mq + Mkv - 1], or [*offset, Mq, Mkv]; without Mq for a single step."""
    dims: tuple[int | Dim, ...]
    """What its last axes are."""
    are_tagged: bool
    """Whether the caller speaks of dims."""
    offset: int | Tensor | TaggedTensor | None

    @classmethod
    def between(
        cls,
        who: str,
        spatial_dim: int | Dim | None,
        query_spatial_dim: int | Dim | None,
        key_value_spatial_dim: int | Dim | None,
        query_offset: int | Tensor | TaggedTensor | None,
        device: torch.device | str | None,
    ) -> Distances:
        """Return every distance once.

        Raises: TypeError unless either `spatial_dim` or both others are given; ValueError for
            fewer than none.
        """
        queries, keys = _queries_and_keys(
            who, spatial_dim, query_spatial_dim, key_value_spatial_dim
        )
        _check_offset(who, queries, query_offset)
        is_step = queries is single_step_dim
        before = size_of(keys) - 1 if is_step else size_of(queries) - 1
        after = 0 if is_step else size_of(keys) - 1
        # Without queries and keys there are no distances; without one of them, one fewer.
        values = torch.arange(-before, max(after + 1, -before), device=device)
        are_tagged = _are_tagged(queries, keys)
        name = f"{before}+1+{after}"
        count = keys if is_step else Dim(len(values), name=name) if are_tagged else len(values)
        return cls(_shifted(values, query_offset, 1), (count,), are_tagged, query_offset)

    @classmethod
    def of_pairs(
        cls,
        who: str,
        queries: int | Dim,
        keys: int | Dim,
        query_offset: int | Tensor | TaggedTensor | None,
        device: torch.device | str | None,
    ) -> Distances:
        """Return the distance of each key from each query."""
        _check_offset(who, queries, query_offset)
        values = torch.arange(size_of(keys), device=device)
        if queries is single_step_dim:
            values, dims = values - (size_of(keys) - 1), (keys,)
        else:
            values = values - torch.arange(size_of(queries), device=device)[:, None]
            dims = (queries, keys)
        shifted = _shifted(values, query_offset, len(dims))
        return cls(shifted, dims, _are_tagged(queries, keys), query_offset)

    def with_tags(
        self, table: Tensor, features: int | Dim
    ) -> tuple[Tensor, int] | tuple[TaggedTensor, Dim]:
        """Return a table [*values, F] and how many distances it has, as the caller speaks."""
        count = self.dims[0]
        if not (self.are_tagged or isinstance(features, Dim)):
            return table, size_of(count)
        count = as_dim(count, "distances")
        return tagged(table, self.offset, [count, features]), count


def tagged(
    table: Tensor, offset: int | Tensor | TaggedTensor | None, dims: Sequence[int | Dim]
) -> TaggedTensor:
    """Tag a table whose first axes are those of a tagged offset; the last is that of features."""
    first = offset.dims if isinstance(offset, TaggedTensor) else ()
    tags = [*first, *(as_dim(dim, "positions") for dim in dims)]
    return TaggedTensor("positional_encoding", tags, raw_tensor=table, feature_dim=tags[-1])


def _queries_and_keys(
    who: str,
    spatial_dim: int | Dim | None,
    query_spatial_dim: int | Dim | None,
    key_value_spatial_dim: int | Dim | None,
) -> tuple[int | Dim, int | Dim]:
    queries, keys = query_spatial_dim, key_value_spatial_dim
    is_older_way = queries is None and keys is None
    if is_older_way:
        queries = keys = spatial_dim
    has_both_ways = spatial_dim is not None and not is_older_way
    if queries is None or keys is None or has_both_ways:
        raise TypeError(
            f"{who}: expected spatial_dim, or query_spatial_dim and key_value_spatial_dim, got "
            f"{spatial_dim}, {query_spatial_dim} and {key_value_spatial_dim}"
        )
    return _checked(who, queries), _checked(who, keys)


def _checked(who: str, dim: int | Dim) -> int | Dim:
    if size_of(dim) < 0:
        raise ValueError(f"{who}: expected 0 queries and keys or more, got {dim}")
    return dim


def _check_offset(
    who: str, queries: int | Dim, query_offset: int | Tensor | TaggedTensor | None
) -> None:
    is_zero = isinstance(query_offset, int) and query_offset == 0
    if queries is single_step_dim and not (query_offset is None or is_zero):
        raise ValueError(
            f"{who}: expected no query_offset for a single step, which is at the last key's place, "
            f"got {query_offset}"
        )


def _shifted(values: Tensor, query_offset: int | Tensor | TaggedTensor | None, axes: int) -> Tensor:
    if query_offset is None:
        return values
    raw = query_offset.raw_tensor if isinstance(query_offset, TaggedTensor) else query_offset
    offset = torch.as_tensor(raw, device=values.device)
    return values - offset[(..., *[None] * axes)]


def _are_tagged(*dims: int | Dim) -> bool:
    return any(isinstance(dim, Dim) and dim is not single_step_dim for dim in dims)
