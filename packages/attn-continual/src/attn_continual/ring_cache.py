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
    num_slots, num_rows = ring.shape[1], rows.shape[1]
    first = max(num_rows - num_slots, 0)
    steps = torch.arange(first, num_rows, device=position.device)
    slots = (position[:, None] + steps) % num_slots
    streams = torch.arange(ring.shape[0], device=ring.device)[:, None]
    rows = rows[:, first:].to(ring.dtype)
    if active is not None:
        chosen = active.view(-1, *[1] * (ring.dim() - 1))
        rows = torch.where(chosen, rows, ring[streams, slots])
    if in_place:
        return ring.index_put_((streams, slots), rows)
    return ring.index_put((streams, slots), rows)


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
