"""Rows of the last steps of each stream in buffers of fixed size: a step writes one, moves none.

Step p of a stream lies in slot p % R. Softmax does not care about the order of keys, so nobody
ever turns a ring round: how old a slot is follows from the stream's position.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


def slot_ages(position: Tensor, num_slots: int) -> Tensor:
    """Return how many steps before the last one each slot was written.

    Shapes: position int64 [N], the steps that each stream has seen; result int64 [N, R]. A slot
        that was never written has an age of `position` or more.
    """
    slots = torch.arange(num_slots, device=position.device)
    return (position[:, None] - 1 - slots) % num_slots


def next_slot(position: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Return the index, of streams [N] and of slots [N], of the next step; also of the oldest one.

    Shapes: position int64 [N], the steps seen before.
    """
    return torch.arange(position.shape[0], device=position.device), position % num_slots


def write_step(
    ring: Tensor,
    row: Tensor,
    slot: tuple[Tensor, Tensor],
    active: Tensor | None = None,
    *,
    in_place: bool = False,
) -> Tensor:
    """Put the row of the next step into its slot.

    Shapes: ring [N, R, ...]; row [N, ...]; slot, of `next_slot`; active bool [N]: the other streams
        keep what they have. Returns the ring: the same if `in_place`, else a new one.
    """
    row = row.to(ring.dtype)
    if active is not None:
        row = torch.where(active.view(-1, *[1] * (row.dim() - 1)), row, ring[slot])
    return ring.index_put_(slot, row) if in_place else ring.index_put(slot, row)


def write(ring: Tensor, rows: Tensor, position: Tensor, active: Tensor | None = None) -> Tensor:
    """Return a ring with the rows of the next T steps in their slots; of more than R, the last R.

    The number of steps decides nothing in Python, so that one graph serves chunks of any length.

    Shapes: ring [N, R, ...]; rows [N, T, ...]; position int64 [N], the steps seen before; active
        bool [N]: the other streams keep what they have.
    """
    return write_each([ring], [rows], position, active)[0]


def write_each(
    rings: Sequence[Tensor],
    rows: Sequence[Tensor],
    position: Tensor,
    active: Tensor | None = None,
) -> list[Tensor]:
    """Return what `write` does of several rings, of as many slots and new rows."""
    num_rows = rows[0].shape[1]
    lengths = torch.full_like(position, num_rows) if active is None else num_rows * active
    return write_some_of_each(rings, rows, position, lengths, rings[0].shape[1])


def write_some_of_each(
    rings: Sequence[Tensor],
    rows: Sequence[Tensor],
    position: Tensor,
    lengths: Tensor,
    num_slots: int,
) -> list[Tensor]:
    """Return rings of `num_slots`, with the first `lengths` of each stream's rows in their slots.

    Shapes: as for `write`; lengths int64 [N]. A ring may become longer before it has wrapped; slots
        that no step has reached then hold anything.
    """
    num_held = rings[0].shape[1]
    row = lengths[:, None] - 1 - slot_ages(position + lengths, num_slots)  # negative: none of these
    slots = torch.arange(num_slots, device=position.device)
    both = [
        torch.cat([ring, more.to(ring.dtype)], dim=1)
        for ring, more in zip(rings, rows, strict=True)
    ]
    return _pick_each(both, torch.where(row < 0, slots, num_held + row))


def rings_after(rows: Sequence[Tensor], position: Tensor, num_slots: int) -> list[Tensor]:
    """Return rings of the last `num_slots` of several streams' rows, those of their last steps.

    Shapes: rows [N, T, ...] each, T >= num_slots; position int64 [N], the steps seen with them.
    """
    return _pick_each(rows, rows[0].shape[1] - 1 - slot_ages(position, num_slots))


def last_rows(ring: Tensor, position: Tensor, count: int) -> Tensor:
    """Return the rows of the last `count` steps, oldest first; 0 for steps before the first.

    Shapes: ring [N, R, ...] with R >= count; position int64 [N]; result [N, count, ...].
    """
    return last_rows_of_each([ring], position, count)[0]


def last_rows_of_each(rings: Sequence[Tensor], position: Tensor, count: int) -> list[Tensor]:
    """Return what `last_rows` does of several rings of as many slots."""
    steps = _last_steps(position, count)
    never = steps < 0
    held = _pick_each(rings, steps % max(rings[0].shape[1], 1))
    return [x.masked_fill(never.view(*never.shape, *[1] * (x.dim() - 2)), 0) for x in held]


def held_rows_of_each(rings: Sequence[Tensor], position: Tensor, count: int) -> list[Tensor]:
    """Return what `last_rows_of_each` does, but for steps before the first what slots hold."""
    return _pick_each(rings, _last_steps(position, count) % max(rings[0].shape[1], 1))


def _last_steps(position: Tensor, count: int) -> Tensor:
    """Return the numbers of the last `count` steps [N, count]; negative before the first."""
    return position[:, None] - torch.arange(count, 0, -1, device=position.device)


def _pick_each(each: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    """Return the rows [N, C, ...] at an index [N, C], or [1, C] for all, of rows [N, T, ...] each.

    One index over the rows of all streams: torch copies these whole, but element by element the
    rows that two indices name.
    """
    num_streams, num_rows = each[0].shape[:2]
    streams = torch.arange(num_streams, device=index.device)[:, None]
    places = streams * num_rows + index
    flat = places.flatten()
    return [rows.flatten(0, 1).index_select(0, flat).unflatten(0, places.shape) for rows in each]


def advance(position: Tensor, num_steps: int, active: Tensor | None) -> Tensor:
    """Return the positions after `num_steps` more, of active streams."""
    return position + (num_steps if active is None else num_steps * active)
