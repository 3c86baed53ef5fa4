"""Patterns of the distance between places on a grid of any number of axes, in row-major order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


def grid_places(*sizes: int) -> Tensor:
    """Return the coordinates of each place of a grid, int64 [N, axes], N the product of `sizes`."""
    return torch.cartesian_prod(*(torch.arange(size) for size in sizes)).reshape(-1, len(sizes))


def local_nd_distance(
    *sizes: int, p: float = 2.0, weights: Sequence[float] | None = None
) -> Tensor:
    """Return the distance of every two places, float32 [N, N].

    p: of the norm; 0 counts the axes along which they differ.
    weights: by which the axes are multiplied; default: 1.
    Raises: ValueError if there are not as many weights as sizes.
    """
    if weights is not None and len(weights) != len(sizes):
        raise ValueError(
            f"local_nd_distance: expected a weight for each of {len(sizes)} sizes, got "
            f"{len(weights)} weights"
        )
    places = grid_places(*sizes).float()
    if weights is not None:
        places = places * torch.tensor(weights, dtype=torch.float32)
    return _distance(places, places, p)


def distance_from(place: int, *sizes: int, p: float = 2.0) -> Tensor:
    """Return the distance of every place from one of them, float32 [N]."""
    places = grid_places(*sizes).float()
    return _distance(places[place : place + 1], places, p)[0]


def local_nd_gaussian_distribution(*sizes: int, sigma: float = 1.0) -> Tensor:
    """Return exp(-distance^2 / (2 sigma^2)) of every two places, float32 [N, N]."""
    return torch.exp(-0.5 * (local_nd_distance(*sizes) / sigma) ** 2)


def local_nd_pattern(*sizes: int, distance: float, p: float = 2.0) -> Tensor:
    """Return which places are nearer to each other than `distance`, bool [N, N]."""
    return local_nd_distance(*sizes, p=p) < distance


def axial_nd_pattern(*sizes: int) -> Tensor:
    """Return which places differ along one axis at most, bool [N, N].

    Source: Ho et al. 2019, arXiv:1912.12180.
    """
    return local_nd_distance(*sizes, p=0) < 2


def _distance(places: Tensor, others: Tensor, p: float) -> Tensor:
    # By way of a matrix product, distances are off by enough to miss a comparison.
    return torch.cdist(places, others, p=p, compute_mode="donot_use_mm_for_euclid_dist")
