"""Positional encodings of RETURNN: sinusoids of relative and of absolute positions.

Sizes are ints, and results torch tensors; or `Dim`s, and results tagged tensors.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from attn_continual.returnn.dim import Dim, single_step_dim, size_of
from attn_continual.returnn.distances import Distances, tagged
from attn_continual.returnn.sinusoids import (
    absolute_frequencies,
    floating_dtype,
    relative_frequencies,
    sinusoids,
)
from attn_continual.returnn.tagged_tensor import TaggedTensor


def relative_positional_encoding(
    spatial_dim: int | Dim | None = None,
    feat_dim: int | Dim | None = None,
    *,
    query_spatial_dim: int | Dim | None = None,
    key_value_spatial_dim: int | Dim | None = None,
    query_offset: int | Tensor | TaggedTensor | None = None,
    dtype: str | torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, int] | tuple[TaggedTensor, Dim]:
    """Return an encoding of every distance between Mq queries and Mkv keys, and how many there are.

    Rows ascend from the distance -(Mq - 1) to Mkv - 1, of a key from a query: row Mq - 1 is that
    of 0, those to its right are of keys after the query. For the distance r and w_i =
    10000^(-2 i / F), a row is [sin(r w_0), ..., sin(r w_(F/2-1)), cos(r w_0), ...].

    Either `spatial_dim`, of queries and keys alike, or `query_spatial_dim` and
    `key_value_spatial_dim`. A query of `single_step_dim` is at the last key's place: distances
    -(Mkv - 1) to 0.
    Shapes: result [Mq + Mkv - 1, F], or [*offset, Mq + Mkv - 1, F].
    feat_dim: F, even.
    query_offset: how many places after the first key the first query is, an int or a tensor of any
        shape; default 0.
    dtype: default torch's default dtype.
    Raises: ValueError if F is odd or a dim is missing; TypeError for both ways to give dims.
    Source: Dai et al. 2019, arXiv:1901.02860.
    """
    distances = Distances.between(
        "relative_positional_encoding",
        spatial_dim,
        query_spatial_dim,
        key_value_spatial_dim,
        query_offset,
        device,
    )
    features = _features("relative_positional_encoding", feat_dim)
    frequencies = relative_frequencies(size_of(features), device)
    table = sinusoids(distances.values, frequencies, _dtype(dtype))
    return distances.with_tags(table, features)


@overload
def sinusoidal_positional_encoding(
    *,
    spatial_dim: int,
    feat_dim: int,
    offset: int | Tensor | None = None,
    base: float = 1e4,
    dtype: str | torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor: ...


@overload
def sinusoidal_positional_encoding(
    *,
    spatial_dim: int | Dim,
    feat_dim: int | Dim,
    offset: int | Tensor | TaggedTensor | None = None,
    base: float = 1e4,
    dtype: str | torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor | TaggedTensor: ...


def sinusoidal_positional_encoding(
    *,
    spatial_dim: int | Dim,
    feat_dim: int | Dim,
    offset: int | Tensor | TaggedTensor | None = None,
    base: float = 1e4,
    dtype: str | torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor | TaggedTensor:
    """Return an encoding of each of T positions, those from `offset` on.

    Row p is [sin(p w_0), ..., cos(p w_0), ...] with w_i = base^(-i / (F / 2 - 1)).

    Shapes: result [T, F], or [*offset, T, F]; without T for `single_step_dim`, which needs an
        `offset`.
    feat_dim: F, even.
    offset: int or a tensor of any shape.
    Raises: ValueError if F is odd, or the offset of a single step is missing.
    Source: Vaswani et al. 2017, arXiv:1706.03762, with the frequencies of tensor2tensor.
    """
    raw_offset = offset.raw_tensor if isinstance(offset, TaggedTensor) else offset
    if spatial_dim is single_step_dim:
        if raw_offset is None:
            raise ValueError(
                "sinusoidal_positional_encoding: expected an offset, the position of the single "
                "step, got None"
            )
        positions = torch.as_tensor(raw_offset, device=device)
    else:
        positions = torch.arange(size_of(spatial_dim), device=device)
        if raw_offset is not None:
            positions = torch.as_tensor(raw_offset, device=device)[..., None] + positions
    frequencies = absolute_frequencies(size_of(feat_dim), base, positions.device)
    table = sinusoids(positions, frequencies, _dtype(dtype))
    dims = (spatial_dim, feat_dim)
    if not any(isinstance(dim, Dim) and dim is not single_step_dim for dim in dims):
        return table
    own = [] if spatial_dim is single_step_dim else [spatial_dim]
    return tagged(table, offset, [*own, feat_dim])


def _features(who: str, feat_dim: int | Dim | None) -> int | Dim:
    if feat_dim is None:
        raise ValueError(f"{who}: expected feat_dim, the number of features, got None")
    return feat_dim


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    return torch.get_default_dtype() if dtype is None else floating_dtype(dtype)
