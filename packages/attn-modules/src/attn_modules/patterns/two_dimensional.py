"""Patterns over an image of H rows and W columns, whose pixel (i, j) is token i W + j.

Tensors are [N, N], N = H W: bool, where True keeps a key, or float32 distances and weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attn_modules.patterns import n_dimensional

if TYPE_CHECKING:
    from torch import Tensor


def horizontal_axial_2d_distance(H: int, W: int, p: float = 2.0) -> Tensor:
    """Return the distance between the rows of every two pixels."""
    return n_dimensional.local_nd_distance(H, W, p=p, weights=(1, 0))


def vertical_axial_2d_distance(H: int, W: int, p: float = 2.0) -> Tensor:
    """Return the distance between the columns of every two pixels."""
    return n_dimensional.local_nd_distance(H, W, p=p, weights=(0, 1))


def local_2d_distance(H: int, W: int, p: float = 2.0) -> Tensor:
    """Return the distance of every two pixels in the norm `p`."""
    return n_dimensional.local_nd_distance(H, W, p=p)


def local_2d_gaussian_distribution(H: int, W: int, sigma: float = 1.0) -> Tensor:
    """Return exp(-distance^2 / (2 sigma^2)) of every two pixels."""
    return n_dimensional.local_nd_gaussian_distribution(H, W, sigma=sigma)


local_2d_gausian_distribution = local_2d_gaussian_distribution
"""The name it has in xFormers."""


def local_2d_pattern(H: int, W: int, distance: float, p: float = 2.0) -> Tensor:
    """Let pixels see those nearer than `distance` in the norm `p`."""
    return n_dimensional.local_nd_pattern(H, W, distance=distance, p=p)


def axial_2d_pattern(H: int, W: int) -> Tensor:
    """Let pixels see their row and their column.

    Source: Ho et al. 2019, arXiv:1912.12180.
    """
    return n_dimensional.axial_nd_pattern(H, W)


def swin_attention_pattern(H: int, W: int, window_size: int, shift_size: int = 0) -> Tensor:
    """Let pixels see those of their window, where windows tile the image.

    shift_size: where the second window begins, if not 0; the first and the last are cut short.
    Raises: ValueError if the image is no multiple of the window, or the shift not less than it.
    Source: Liu et al. 2021, arXiv:2103.14030, section 3.2.
    """
    window = swin_windows(H, W, window_size, shift_size)
    return window[:, None] == window


def swin_windows(H: int, W: int, window_size: int, shift_size: int = 0) -> Tensor:
    """Return the number of each pixel's window, int64 [N]; see `swin_attention_pattern`."""
    if window_size < 1 or H % window_size != 0 or W % window_size != 0:
        raise ValueError(
            f"swin_attention_pattern: expected H and W to be multiples of window_size, got {H}, "
            f"{W} and {window_size}"
        )
    if not 0 <= shift_size < window_size:
        raise ValueError(
            f"swin_attention_pattern: expected shift_size of 0 to {window_size - 1}, got "
            f"{shift_size}"
        )
    row, column = (n_dimensional.grid_places(H, W) + -shift_size % window_size).unbind(1)
    windows_across = W // window_size + 1
    return row // window_size * windows_across + column // window_size


def dilated_2d_pattern(H: int, W: int, k: int = 2) -> Tensor:
    """Let pixels see every k-th row's every k-th pixel, counted from themselves.

    Raises: ValueError if `k` is less than 1.
    """
    phase = dilated_2d_phases(H, W, k)
    return phase[:, None] == phase


def dilated_2d_phases(H: int, W: int, k: int) -> Tensor:
    """Return which pixels see each other as those of one number, int64 [N]."""
    if k < 1:
        raise ValueError(f"dilated_2d_pattern: expected k of 1 or more, got {k}")
    row, column = n_dimensional.grid_places(H, W).unbind(1)
    return row % k * k + column % k
