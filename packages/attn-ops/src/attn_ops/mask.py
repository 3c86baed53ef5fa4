"""The one description of which keys a query sees, with the field names of `attn/mask.h`.

Dropout's seed and offset are one tensor here, and positions are left to an operator of their own:
what they are computed from are inputs, not parts of a mask.
"""

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
class Sequences:
    """Let the queries of a sequence see its own keys alone; tensors of batch 1 hold them all.

    Sequence s owns queries [q_start[s], q_start[s + 1]) and keys [k_start[s], k_start[s] +
    k_len[s]); the band applies within it. A query outside every sequence sees no key.
    """

    q_start: Tensor
    """int32 [n + 1], not descending."""
    k_start: Tensor
    """int32 [n + 1], not descending; or [n] or more if there is k_len."""
    k_len: Tensor | None = None
    """int32 [n]; None: k_start[s + 1] - k_start[s]."""
    max_q_len: int = 0
    """No sequence has more queries; 0: not known."""
    max_k_len: int = 0
    """No sequence has more keys; 0: not known."""


@dataclass(frozen=True)
class Pages:
    """Find key j of sequence s, t = k_start[s] + j, in slot table[s, t // size] * size + t % size.

    Needs `Sequences` with `k_len`. Sequences may share pages.
    """

    block_table: Tensor
    """int32 [n, max_pages]."""
    page_size: int
    """Keys per page."""


@dataclass(frozen=True)
class Blocks:
    """Let the queries of block r see the keys of blocks indices[offsets[h, r] : offsets[h, r + 1]].

    Not together with `Sequences`.
    """

    offsets: Tensor
    """int32 [1 or Hq, query_blocks + 1]."""
    indices: Tensor
    """int32 [count], ascending within each list."""
    block_size: int
    """Queries and keys per block."""


@dataclass(frozen=True)
class Relative:
    """Add biases of the distance d = j - (i + shift) from the band's diagonal."""

    slopes: Tensor | None = None
    """[Hq]: adds -slopes[h] * |d|."""
    table: Tensor | None = None
    """[Hq, 2 R + 1]: adds table[h, clamp(d, -R, R) + R]."""


@dataclass(frozen=True)
class MaskSpec:
    """Everything a kernel knows about a mask.

    Parts combine: a key must pass each of them, and what they add is added up.
    """

    band: Band = field(default_factory=lambda: Band())  # noqa: PLW0108  Dynamo takes no class
    bias: Tensor | None = None
    """[B or 1, Hq or 1, Mq or 1, Mkv or 1]: added to the scaled scores; or bool, True keeps.
    Its indices are rows of query and key as they lie in memory, whatever sequence owns them."""
    dropout: Dropout = field(default_factory=lambda: Dropout())  # noqa: PLW0108  likewise
    sequences: Sequences | None = None
    pages: Pages | None = None
    blocks: Blocks | None = None
    relative: Relative = field(default_factory=lambda: Relative())  # noqa: PLW0108  likewise
    sink: Tensor | None = None
    """[Hq]: a logit that joins each row's softmax and carries no value; it counts in the LSE."""
    softcap: float = 0.0
    """Positive: scaled scores s become softcap * tanh(s / softcap), before any bias."""
