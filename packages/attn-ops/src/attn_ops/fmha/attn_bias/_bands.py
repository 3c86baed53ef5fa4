"""The bands around the diagonal that mask classes name, and the check of their windows."""

from typing import Final

from attn_ops.mask import ANCHOR_BOTTOM_RIGHT, UNBOUNDED, Band

EVERY_KEY: Final = Band(anchor=ANCHOR_BOTTOM_RIGHT)
"""Bounds nothing; distances count from the diagonal that ends at the last query and key."""

CAUSAL: Final = Band(right=0)
"""Key j <= query i."""

CAUSAL_FROM_BOTTOM_RIGHT: Final = Band(right=0, anchor=ANCHOR_BOTTOM_RIGHT)
"""Key j <= query i + s, with s keys more than queries."""


def causal_window(size: int) -> Band:
    """Return the band i - size < j <= i: so many keys, the diagonal included."""
    return Band(left=size - 1, right=0)


def causal_window_from_bottom_right(size: int) -> Band:
    """Return the band i + s - size < j <= i + s."""
    return Band(left=size - 1, right=0, anchor=ANCHOR_BOTTOM_RIGHT)


def window_from_bottom_right(left: int, right: int) -> Band:
    """Return the band i + s - left <= j <= i + s + right."""
    return Band(left=left, right=right, anchor=ANCHOR_BOTTOM_RIGHT)


def check_sides(who: object, window_left: int, window_right: int) -> None:
    """Check the window of a mask with keys on both sides of the diagonal.

    Raises: TypeError if one is no int; ValueError if one is negative, or does not fit int64.
    """
    name = type(who).__name__
    for side, value in (("left", window_left), ("right", window_right)):
        if not isinstance(value, int):
            raise TypeError(f"{name}: expected an int as window_{side}, got {value!r}")
        if not 0 <= value <= UNBOUNDED:
            bound = "" if value < 0 else " and below 2**63"
            raise ValueError(
                f"{name}: expected window_{side} of 0 or more{bound}, got {value}; as many as "
                "there are keys bound nothing"
            )


def check_window(who: object, window_size: int) -> None:
    """Check the window of a causal mask.

    Raises: TypeError if it is no int; ValueError if it is not positive.
    """
    name = type(who).__name__
    if not isinstance(window_size, int):
        raise TypeError(f"{name}: expected an int as window_size, got {window_size!r}")
    if not 1 <= window_size <= UNBOUNDED:
        raise ValueError(f"{name}: expected window_size in [1, 2**63), got {window_size}")
