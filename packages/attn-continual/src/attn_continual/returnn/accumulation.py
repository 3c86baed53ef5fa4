"""Keys and values of the steps that streams have seen: in a buffer that grows, or in a ring."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attn_continual.ring_cache import (
    last_rows_of_each,
    next_slot,
    slot_ages,
    write_some_of_each,
    write_step,
)


class History(NamedTuple):
    """The last steps of each stream, oldest first."""

    key: Tensor
    """[B, count, H, dk]"""
    value: Tensor
    """[B, count, H, dv]"""
    is_there: Tensor | None
    """bool [B, count]: False before a stream's first step; None: all are there."""


class Accumulated(NamedTuple):
    """Step p of a stream lies in slot p, or of a ring in slot p % R.

    A buffer that grows is a ring that is made longer before it would wrap.
    """

    key: Tensor
    """[B, R, H, dk]"""
    value: Tensor
    """[B, R, H, dv]"""
    position: int | Tensor
    """Steps seen: an int, R, if by all streams alike; else int64 [B]."""

    def history(self, count: int) -> History:
        """Return the last `count` steps; all R where the position is an int."""
        if isinstance(self.position, int):
            return History(self.key, self.value, None)
        offsets = torch.arange(-count, 0, device=self.position.device)
        key, value = last_rows_of_each((self.key, self.value), self.position, count)
        return History(key, value, self.position[:, None] + offsets >= 0)

    def ages(self) -> tuple[Tensor, Tensor | None]:
        """Return how old the slots are, [B or 1, R], and which hold a step, bool, or None: all."""
        num_slots = self.key.shape[1]
        if isinstance(self.position, int):
            return torch.arange(num_slots - 1, -1, -1, device=self.key.device)[None], None
        ages = slot_ages(self.position, num_slots)
        return ages, ages < self.position[:, None]

    def appended(self, key: Tensor, value: Tensor, lengths: Tensor | None) -> Accumulated:
        """Make the buffer longer by rows [B, T, H, ...], of each stream the first `lengths`.

        lengths: int64 [B], or None: all T.
        """
        if isinstance(self.position, int) and lengths is None:
            key, value = torch.cat([self.key, key], 1), torch.cat([self.value, value], 1)
            return Accumulated(key, value, key.shape[1])
        return self._put(key, value, lengths, self.key.shape[1] + key.shape[1])

    def written(
        self, key: Tensor, value: Tensor, lengths: Tensor | None, *, in_place: bool = False
    ) -> Accumulated:
        """Put rows [B, T, H, ...] into the ring, of each stream the first `lengths`.

        in_place: a single step may be put into the ring itself, and not into a new one.
        """
        num_slots = self.key.shape[1]
        if key.shape[1] != 1:
            return self._put(key, value, lengths, num_slots)
        position = self.positions()
        slot = next_slot(position, num_slots)
        active = None if lengths is None else lengths > 0
        key, value = (
            write_step(ring, rows[:, 0], slot, active, in_place=in_place)
            for ring, rows in ((self.key, key), (self.value, value))
        )
        return Accumulated(key, value, position + (1 if lengths is None else lengths))

    def positions(self) -> Tensor:
        """Return the steps seen by each stream, int64 [B]."""
        if isinstance(self.position, Tensor):
            return self.position
        batch, device = self.key.shape[0], self.key.device
        return torch.full((batch,), self.position, dtype=torch.int64, device=device)

    def _put(
        self, key: Tensor, value: Tensor, lengths: Tensor | None, num_slots: int
    ) -> Accumulated:
        """Return rings of so many slots, each with the last step that is its own."""
        before = self.positions()
        lengths = torch.full_like(before, key.shape[1]) if lengths is None else lengths
        key, value = write_some_of_each(
            (self.key, self.value), (key, value), before, lengths, num_slots
        )
        return Accumulated(key, value, before + lengths)
