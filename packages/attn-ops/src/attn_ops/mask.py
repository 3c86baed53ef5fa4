"""The one description of which keys a query sees, with the field names of `attn/mask.h`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

UNBOUNDED: Final = 2**63 - 1
"""A band side that never excludes a key."""

ANCHOR_TOP_LEFT: Final = 0
"""The diagonal starts at query 0, key 0."""

ANCHOR_BOTTOM_RIGHT: Final = 1
"""The diagonal ends at the last query, the last key."""


@dataclass(frozen=True)
class Band:
    """Let query i see key j if `-left <= j - (i + shift) <= right`.

    `shift` is 0 for the top-left anchor and Mkv - Mq for the bottom-right one.
    """

    left: int = UNBOUNDED
    """Keys before the diagonal."""
    right: int = UNBOUNDED
    """Keys after the diagonal."""
    anchor: int = ANCHOR_TOP_LEFT


@dataclass(frozen=True)
class Dropout:
    """Drop each probability with chance `p`, and scale the kept ones by 1 / (1 - p)."""

    p: float = 0.0
    seed: Tensor | None = None
    """int64 [2], the seed and the offset; a tensor, so that `torch.compile` can draw it."""


@dataclass(frozen=True)
class MaskSpec:
    """Everything a kernel knows about a mask. Parts combine: a key must pass each of them."""

    band: Band = field(default_factory=Band)
    bias: Tensor | None = None
    """[B or 1, Hq or 1, Mq or 1, Mkv or 1]: added to the scaled scores; or bool, True keeps."""
    dropout: Dropout = field(default_factory=Dropout)
