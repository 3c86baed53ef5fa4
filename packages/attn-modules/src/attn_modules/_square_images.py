"""Views of sequences as square images, for the mechanisms that mix pixels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from attn_modules._inputs import Inputs


def square_side(who: str, pixels: int) -> int:
    """Return the side of an image of so many pixels.

    Raises: ValueError if it is not square.
    """
    side = math.isqrt(pixels)
    if side * side != pixels:
        raise ValueError(
            f"{who}: expected a square number of queries, the rows of pixels of a square image one "
            f"after another, got {pixels}; pad to {(side + 1) ** 2} and mark what is added in "
            "key_padding_mask"
        )
    return side


def as_images(rows: Tensor, side: int) -> Tensor:
    """View rows [B, side * side, H, K] as images [B * H, K, side, side]."""
    return rows.transpose(1, 2).flatten(0, 1).unflatten(1, (side, side)).permute(0, 3, 1, 2)


def as_rows(images: Tensor, heads: int) -> Tensor:
    """View images [B * H, K, height, width] as rows [B, height * width, H, K]."""
    return images.flatten(2).unflatten(0, (-1, heads)).permute(0, 3, 1, 2)


def kept_pixels(inputs: Inputs, side: int) -> Tensor | None:
    """Return which pixels are not padding, bool [B * H or 1, 1, side, side], or None if all are."""
    rows = inputs.kept_rows()
    if rows is None:
        return None
    batch, heads = inputs.q.shape[0], inputs.q.shape[2]
    return as_images(rows.expand(batch, -1, heads, -1), side)
