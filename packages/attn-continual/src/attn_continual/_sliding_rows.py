"""What a chunk of steps makes of rows that a ring holds: windows of them, and late rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attn_continual.ring_cache import last_rows, last_rows_of_each, next_slot, write, write_step

if TYPE_CHECKING:
    from collections.abc import Sequence


def sliding_windows(
    rings: Sequence[Tensor], rows: Sequence[Tensor], position: Tensor, length: int
) -> list[Tensor]:
    """Return of each ring the `length` rows up to each of the next T steps, the oldest first.

    Shapes: rings [N, R, ...] with R >= length - 1, of the steps before; rows [N, T, ...]; position
        int64 [N], the steps seen before; results [N, T, length, ...], 0 for steps before the first.
    """
    num_steps, device = rows[0].shape[1], position.device
    starts = torch.arange(num_steps, device=device)
    index = (starts[:, None] + torch.arange(length, device=device)).flatten()
    return [
        torch.cat([history, more.to(history.dtype)], dim=1)
        .index_select(1, index)
        .unflatten(1, (num_steps, length))
        for history, more in zip(last_rows_of_each(rings, position, length - 1), rows, strict=True)
    ]


def late_rows(ring: Tensor, rows: Tensor, position: Tensor, delay: int) -> Tensor:
    """Return the rows of `delay` steps before each of the next T steps, in the dtype of `rows`.

    Shapes: ring [N, R, ...] with R >= delay; rows, result [N, T, ...]; position int64 [N].
    """
    if delay == 0:
        return rows
    history = last_rows(ring, position, delay)
    late = torch.cat([history, rows.to(ring.dtype)], dim=1)[:, : rows.shape[1]]
    return late.to(rows.dtype)


def keep_rows(
    ring: Tensor, rows: Tensor, position: Tensor, active: Tensor | None, *, in_place: bool = False
) -> Tensor:
    """Return the ring with the next rows in it, as `ring_cache.write`; it may have no slots.

    in_place: write into the ring; only of a single step.
    """
    if ring.shape[1] == 0:
        return ring
    if in_place:
        slot = next_slot(position, ring.shape[1])
        return write_step(ring, rows[:, 0], slot, active, in_place=True)
    return write(ring, rows, position, active)
