"""Distances on grids of up to three axes, one pair of places after the other."""

import itertools
import math

import pytest
import torch

from attn_modules.patterns import (
    axial_nd_pattern,
    local_nd_distance,
    local_nd_gaussian_distribution,
    local_nd_pattern,
)

SIZES = [(7,), (3, 5), (2, 3, 4)]


def pairs(sizes, value):
    """Return value(place, other) of every two places."""
    places = list(itertools.product(*map(range, sizes)))
    return torch.tensor([[value(place, other) for other in places] for place in places])


def norm(place, other, p, weights=(1, 1, 1)):
    apart = [weight * abs(x - y) for x, y, weight in zip(place, other, weights, strict=False)]
    if p == 0:
        return float(sum(x > 0 for x in apart))
    return max(apart) * 1.0 if p == math.inf else sum(x**p for x in apart) ** (1 / p)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("p", [0, 1, 2, math.inf])
def test_distance(sizes, p):
    expected = pairs(sizes, lambda place, other: norm(place, other, p))
    torch.testing.assert_close(local_nd_distance(*sizes, p=p), expected)


def test_weights_stretch_axes():
    expected = pairs((3, 5), lambda place, other: norm(place, other, 2, (2, 0.5)))
    torch.testing.assert_close(local_nd_distance(3, 5, weights=(2, 0.5)), expected)
    with pytest.raises(ValueError, match="a weight for each of 2 sizes, got 1"):
        local_nd_distance(3, 5, weights=(1,))


@pytest.mark.parametrize("sizes", SIZES)
def test_gaussian(sizes):
    expected = pairs(
        sizes, lambda place, other: math.exp(-0.5 * (norm(place, other, 2) / 1.5) ** 2)
    )
    torch.testing.assert_close(local_nd_gaussian_distribution(*sizes, sigma=1.5), expected)


@pytest.mark.parametrize("sizes", [(8, 9), (40, 3)])
def test_pattern_leaves_out_what_is_just_so_far(sizes):
    expected = pairs(
        sizes, lambda place, other: (place[0] - other[0]) ** 2 + (place[1] - other[1]) ** 2 < 4
    )
    assert torch.equal(local_nd_pattern(*sizes, distance=2), expected)


@pytest.mark.parametrize("sizes", SIZES)
def test_axial(sizes):
    expected = pairs(sizes, lambda place, other: norm(place, other, 0) < 2)
    assert torch.equal(axial_nd_pattern(*sizes), expected)
