"""Patterns over an image against their sentences, pixel by pixel."""

import itertools
import math

import pytest
import torch

from attn_modules import patterns

SIZES = pytest.mark.parametrize(("H", "W"), [(5, 7), (7, 5), (6, 6)])


def pixels(H, W, value):
    places = list(itertools.product(range(H), range(W)))
    return torch.tensor([[value(*place, *other) for other in places] for place in places])


@SIZES
@pytest.mark.parametrize("p", [1, 2])
def test_distances(H, W, p):
    rows = pixels(H, W, lambda i, j, y, x: float(abs(i - y)))  # noqa: ARG005
    columns = pixels(H, W, lambda i, j, y, x: float(abs(j - x)))  # noqa: ARG005
    assert torch.equal(patterns.horizontal_axial_2d_distance(H, W, p=p), rows)
    assert torch.equal(patterns.vertical_axial_2d_distance(H, W, p=p), columns)
    both = (rows**p + columns**p) ** (1 / p)
    torch.testing.assert_close(patterns.local_2d_distance(H, W, p=p), both)


@SIZES
def test_gaussian(H, W):
    expected = pixels(
        H, W, lambda i, j, y, x: math.exp(-((i - y) ** 2 + (j - x) ** 2) / (2 * 0.5**2))
    )
    gaussian = patterns.local_2d_gaussian_distribution(H, W, sigma=0.5)
    torch.testing.assert_close(gaussian, expected)
    assert patterns.local_2d_gausian_distribution is patterns.local_2d_gaussian_distribution


@SIZES
def test_local(H, W):
    expected = pixels(H, W, lambda i, j, y, x: (i - y) ** 2 + (j - x) ** 2 < 9)
    assert torch.equal(patterns.local_2d_pattern(H, W, 3), expected)
    expected = pixels(H, W, lambda i, j, y, x: abs(i - y) + abs(j - x) < 2)
    assert torch.equal(patterns.local_2d_pattern(H, W, 2, p=1), expected)


@SIZES
def test_axial(H, W):
    expected = pixels(H, W, lambda i, j, y, x: i == y or j == x)
    assert torch.equal(patterns.axial_2d_pattern(H, W), expected)


@SIZES
@pytest.mark.parametrize("k", [1, 2, 3])
def test_dilated(H, W, k):
    expected = pixels(H, W, lambda i, j, y, x: (i - y) % k == 0 and (j - x) % k == 0)
    assert torch.equal(patterns.dilated_2d_pattern(H, W, k), expected)


@pytest.mark.parametrize("window_size", [2, 4])
@pytest.mark.parametrize(("H", "W"), [(8, 4), (4, 12)])
def test_swin_windows_tile_the_image(H, W, window_size):
    expected = pixels(
        H,
        W,
        lambda i, j, y, x: (
            i // window_size == y // window_size and j // window_size == x // window_size
        ),
    )
    assert torch.equal(patterns.swin_attention_pattern(H, W, window_size), expected)


@pytest.mark.parametrize("shift_size", [1, 2, 3])
def test_shifted_swin_is_what_rolling_the_image_gives(shift_size):
    H, W, window = 8, 12, 4

    def region(i, size):
        """Return the window after rolling, and on which side of the seam it came from."""
        return (i - shift_size) % size // window, i < shift_size

    expected = pixels(
        H,
        W,
        lambda i, j, y, x: region(i, H) == region(y, H) and region(j, W) == region(x, W),
    )
    ours = patterns.swin_attention_pattern(H, W, window, shift_size)
    assert torch.equal(ours, expected)


def test_other_arguments_are_refused():
    with pytest.raises(ValueError, match="multiples of window_size"):
        patterns.swin_attention_pattern(8, 6, 4)
    with pytest.raises(ValueError, match="shift_size of 0 to 3"):
        patterns.swin_attention_pattern(8, 8, 4, 4)
    with pytest.raises(ValueError, match="k of 1 or more"):
        patterns.dilated_2d_pattern(8, 8, 0)
