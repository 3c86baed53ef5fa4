"""Lowers `attn_bias` objects to the parts of a `MaskSpec`: no kernel knows a class name."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from attn_ops.fmha.attn_bias import (
    AttentionBias,
    LowerTriangularFromBottomRightLocalAttentionMask,
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
)
from attn_ops.mask import ANCHOR_BOTTOM_RIGHT, Band

# Exact types: a subclass from elsewhere may mean something else, and is refused by name.
_BANDS: dict[type, Callable[[Any], Band]] = {
    type(None): lambda _: Band(),
    LowerTriangularMask: lambda _: Band(right=0),
    LowerTriangularFromBottomRightMask: lambda _: Band(right=0, anchor=ANCHOR_BOTTOM_RIGHT),
    LowerTriangularFromBottomRightLocalAttentionMask: lambda mask: Band(
        left=mask._window_size - 1,  # noqa: SLF001  xFormers' own field name
        right=0,
        anchor=ANCHOR_BOTTOM_RIGHT,
    ),
}


def can_lower(attn_bias: object) -> bool:
    """Return whether `attn_bias` is of a kind that kernels can evaluate."""
    return isinstance(attn_bias, Tensor) or type(attn_bias) in _BANDS


def lower_band(attn_bias: Tensor | AttentionBias | None) -> Band:
    """Return the band that `attn_bias` stands for; a tensor bounds nothing."""
    if isinstance(attn_bias, Tensor):
        return Band()
    return _BANDS[type(attn_bias)](attn_bias)
