"""Rows of the last steps of each stream in buffers of fixed size: one write per step, no moving.

Step p of a stream lies in slot p % R. Softmax does not care about the order of keys, so nobody
ever turns a ring round: how old a slot is follows from the stream's position.
"""

from __future__ import annotations

import torch
from torch import Tensor


def slot_ages(position: Tensor, num_slots: int) -> Tensor:
    """Return how many steps before the last one each slot was written.

    Shapes: position int64 [N], the steps that each stream has seen; result int64 [N, R]. A slot
        that was never written has an age of `position` or more.
    """
    slots = torch.arange(num_slots, device=position.device)
    return (position[:, None] - 1 - slots) % num_slots


def next_slots(position: Tensor, num_rows: int, num_slots: int) -> tuple[Tensor, Tensor]:
    """Return the index, of streams [N, 1] and of slots, of the next rows: of more than R, the last.

    Shapes: position int64 [N], the steps seen before; slots [N, min(num_rows, R)].
    """
    steps = torch.arange(max(num_rows - num_slots, 0), num_rows, device=position.device)
    streams = torch.arange(position.shape[0], device=position.device)
    return streams[:, None], (position[:, None] + steps) % max(num_slots, 1)


def put(
    ring: Tensor,
    rows: Tensor,
    index: tuple[Tensor, Tensor],
    active: Tensor | None = None,
    *,
    in_place: bool = False,
) -> Tensor:
    """Put the last of the rows [N, T, ...] into the slots of `next_slots`; see `write`."""
    rows = rows[:, rows.shape[1] - index[1].shape[1] :].to(ring.dtype)
    if active is not None:
        rows = torch.where(active.view(-1, *[1] * (ring.dim() - 1)), rows, ring[index])
    return ring.index_put_(index, rows) if in_place else ring.index_put(index, rows)


def write(
    ring: Tensor,
    rows: Tensor,
    position: Tensor,
    active: Tensor | None = None,
    *,
    in_place: bool = False,
) -> Tensor:
    """Put the rows of the next T steps into their slots; of more than R, the last R.

    Shapes: ring [N, R, ...]; rows [N, T, ...]; position int64 [N], the steps seen before; active
        bool [N]: the other streams keep what they have. Returns the ring: the same if `in_place`,
        else a new one.
    """
    index = next_slots(position, rows.shape[1], ring.shape[1])
    return put(ring, rows, index, active, in_place=in_place)


def last_rows(ring: Tensor, position: Tensor, count: int) -> Tensor:
    """Return the rows of the last `count` steps, oldest first; 0 for steps before the first.

    Shapes: ring [N, R, ...] with R >= count; position int64 [N]; result [N, count, ...].
    """
    steps = position[:, None] - torch.arange(count, 0, -1, device=position.device)
    streams = torch.arange(ring.shape[0], device=ring.device)[:, None]
    never = (steps < 0).view(*steps.shape, *[1] * (ring.dim() - 2))
    return ring[streams, steps % max(ring.shape[1], 1)].masked_fill(never, 0)


def advance(position: Tensor, num_steps: int, active: Tensor | None) -> Tensor:
    """Return the positions after `num_steps` more, of active streams."""
    return position + (num_steps if active is None else num_steps * active)
