"""Attention of each step over the last `window` steps of its stream, one step or a chunk at a time.

Knows rows of queries, keys and values by head, not where they come from; layers project and call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attn_continual._step_checks import check_rows
from attn_continual.ring_cache import (
    advance,
    held_rows_of_each,
    last_rows,
    next_slot,
    rings_after,
    slot_ages,
    write,
    write_each,
    write_step,
)
from attn_continual.streams import loadable
from attn_ops import (
    LowerTriangularFromBottomRightLocalAttentionMask,
    attention_step_,
    memory_efficient_attention,
    memory_efficient_attention_partial,
    merge_attentions,
)
from attn_ops.fmha.attn_bias import AttentionBias, RelativePositionBias


@loadable
class WindowState(NamedTuple):
    """What attention over a window remembers of N streams."""

    key: Tensor
    """[N, R, H, K], rings of R >= window slots"""
    value: Tensor
    """[N, R, H, Kv]"""
    query: Tensor
    """[N, delay, H, K]: queries that wait for the keys after them"""
    padding: Tensor
    """bool [N, R]: slots whose key no query sees"""
    position: Tensor
    """int64 [N]: steps seen"""


class Rows(NamedTuple):
    """Queries, keys and values of T steps."""

    query: Tensor
    """[N, T, H, K]"""
    key: Tensor
    """[N, T, H, K]"""
    value: Tensor
    """[N, T, H, Kv]"""
    padding: Tensor | None = None
    """bool [N, T]: True hides the key"""


class ExtraRows(NamedTuple):
    """Keys and values that every query sees besides the window's."""

    key: Tensor
    """[E, H, K]"""
    value: Tensor
    """[E, H, Kv]"""


@dataclass(frozen=True)
class Window:
    """Which steps attend to which: the query of step t - delay to the keys of (t - length, t].

    waits: an output is valid once the window is full; else once its query is there.
    """

    length: int
    delay: int = 0
    waits: bool = True
    dropout: float = 0.0

    def initial_state(
        self,
        num_streams: int,
        heads: int,
        width: int,
        value_width: int,
        *,
        num_slots: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> WindowState:
        """Return the state of streams that have seen nothing, with rings of `num_slots` slots.

        Raises: ValueError if the rings are shorter than the window.
        """
        slots = self.length if num_slots is None else num_slots
        if slots < self.length:
            raise ValueError(
                f"window attention: expected rings of at least {self.length} slots, as long as "
                f"the window, got {slots}"
            )

        def rings(length: int, features: int) -> Tensor:
            return torch.zeros(num_streams, length, heads, features, device=device, dtype=dtype)

        return WindowState(
            key=rings(slots, width),
            value=rings(slots, value_width),
            query=rings(self.delay, width),
            padding=torch.zeros(num_streams, slots, dtype=torch.bool, device=device),
            position=torch.zeros(num_streams, dtype=torch.int64, device=device),
        )

    def step(
        self,
        rows: Rows,
        state: WindowState,
        *,
        mask_row: Tensor | None = None,
        extra: ExtraRows | None = None,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, WindowState, Tensor]:
        """Return the output [N, 1, H, Kv] of one step, the new state, and valid, bool [N, 1].

        mask_row: [N or 1, H or 1, length], added to the scores of the window's keys, the oldest
            first.
        """
        check_window_rows(rows, state, mask_row, active)
        if in_place and self._has_native_step(state):
            out = self._step_in_place(rows, state, mask_row, extra, active)
            return out, state, self.valid(state.position.unsqueeze(1), active)
        query = rows.query
        if self.delay > 0:  # the oldest query lies where the newest goes
            query = state.query[next_slot(state.position, self.delay)].unsqueeze(1)
        state = self.write_step(rows, state, active, in_place)
        ages = slot_ages(state.position, state.key.shape[1])
        seen = ages < state.position.clamp(max=self.length)[:, None]
        bias: Tensor = (seen & ~state.padding)[:, None, None]
        if mask_row is not None:
            columns = (self.length - 1 - ages).clamp(min=0)[:, None]
            shape = (*columns.shape[:1], mask_row.shape[1], mask_row.shape[2])
            by_slot = mask_row.expand(shape).gather(2, columns.expand(-1, shape[1], -1))
            bias = by_slot[:, :, None].masked_fill(~bias, -torch.inf)
        out = self.attend(query, state.key, state.value, bias, extra)
        return out, state, self.valid(state.position[:, None], active)

    def _has_native_step(self, state: WindowState) -> bool:
        is_recorded = torch.is_grad_enabled()
        is_served = state.key.device.type in ("cpu", "cuda")
        return self.dropout == 0 and not is_recorded and is_served

    def _step_in_place(
        self,
        rows: Rows,
        state: WindowState,
        mask_row: Tensor | None,
        extra: ExtraRows | None,
        active: Tensor | None,
    ) -> Tensor:
        """Write the step's rows into `state`, its position too, and return the output."""
        query, key, value, dtype = rows.query, rows.key, rows.value, state.key.dtype
        if not query.dtype == key.dtype == value.dtype == dtype:
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if mask_row is not None:
            mask_row = mask_row if mask_row.dtype == torch.float32 else mask_row.to(dtype)
            mask_row = mask_row[:, :, None]
        return attention_step_(
            query,
            key,
            value,
            state.key,
            state.value,
            state.position,
            self.length,
            padding=None if rows.padding is None else rows.padding[:, 0],
            padding_ring=state.padding,
            active=active,
            attn_bias=mask_row,
            extra_key=None if extra is None else extra.key.to(dtype),
            extra_value=None if extra is None else extra.value.to(dtype),
            query_ring=state.query if self.delay > 0 else None,
        )

    def steps(
        self,
        rows: Rows,
        state: WindowState,
        *,
        mask_row: Tensor | None = None,
        extra: ExtraRows | None = None,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, WindowState, Tensor]:
        """Return the outputs [N, T, H, Kv] of T steps, the new state, and valid, bool [N, T].

        mask_row: as for `step`. One that differs between streams makes a tensor [N, H, T, keys].
        in_place: as for `step`; a chunk makes new rings all the same.
        """
        del in_place
        check_window_rows(rows, state, mask_row, active)
        num_steps = rows.key.shape[1]
        # One step more than a window reaches back, so that together they fill a ring.
        before, history = state.position, self.length
        held = held_rows_of_each((state.key, state.value, state.padding), before, history)
        new = (rows.key, rows.value, padding_of(rows.padding, rows.key))
        key, value, padding = (
            torch.cat([old, more.to(old.dtype)], dim=1) for old, more in zip(held, new, strict=True)
        )
        query = rows.query
        if self.delay > 0:
            query = torch.cat([last_rows(state.query, before, self.delay), query], dim=1)
        offsets = torch.arange(-history, num_steps, device=before.device)
        keep = ~padding & (before[:, None] + offsets >= 0)
        bias: Tensor = keep[:, None, None]
        mask: AttentionBias = LowerTriangularFromBottomRightLocalAttentionMask(self.length)
        if mask_row is not None and mask_row.shape[0] == 1:
            mask = mask.add_bias(self._by_distance(mask_row[0], rows.query.shape[2]))
        elif mask_row is not None:
            bias = self._by_key(mask_row, num_steps).masked_fill(~bias, -torch.inf)
        mask = mask.add_bias(bias)
        out = self.attend(query[:, :num_steps], key, value, mask, extra)
        if active is None and state.key.shape[1] == self.length:
            state = self._state_of(key, value, padding, rows.query, state)
        else:
            state = self.write(rows, state, active)
        ends = before[:, None] + torch.arange(1, num_steps + 1, device=before.device)
        return out, state, self.valid(ends, active)

    def write_step(
        self, rows: Rows, state: WindowState, active: Tensor | None, in_place: bool
    ) -> WindowState:
        """Return the state after one step, in the memory of `state` if `in_place`."""
        slot = next_slot(state.position, state.key.shape[1])
        waiting = next_slot(state.position, self.delay) if self.delay > 0 else slot

        def put(ring: Tensor, row: Tensor, slot: tuple[Tensor, Tensor]) -> Tensor:
            return write_step(ring, row[:, 0], slot, active, in_place=in_place)

        return WindowState(
            key=put(state.key, rows.key, slot),
            value=put(state.value, rows.value, slot),
            query=put(state.query, rows.query, waiting) if self.delay > 0 else state.query,
            padding=put(state.padding, padding_of(rows.padding, rows.key), slot),
            position=advance(state.position, 1, active),
        )

    def write(self, rows: Rows, state: WindowState, active: Tensor | None) -> WindowState:
        """Return the state after the steps of `rows`."""
        before, waiting = state.position, state.query
        key, value, padding = write_each(
            (state.key, state.value, state.padding),
            (rows.key, rows.value, padding_of(rows.padding, rows.key)),
            before,
            active,
        )
        return WindowState(
            key=key,
            value=value,
            query=write(waiting, rows.query, before, active) if self.delay > 0 else waiting,
            padding=padding,
            position=advance(before, rows.key.shape[1], active),
        )

    def _state_of(
        self, key: Tensor, value: Tensor, padding: Tensor, new_query: Tensor, state: WindowState
    ) -> WindowState:
        """Return what `write` does, for rings as long as the window and streams all active.

        key, value, padding: of the last `length` steps before and the new ones.
        """
        before, waiting = state.position, state.query
        after = advance(before, new_query.shape[1], None)
        key, value, padding = rings_after((key, value, padding), after, self.length)
        return WindowState(
            key=key,
            value=value,
            query=write(waiting, new_query, before) if self.delay > 0 else waiting,
            padding=padding,
            position=after,
        )

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: AttentionBias | Tensor,
        extra: ExtraRows | None,
    ) -> Tensor:
        """Return attention to the keys that the mask leaves, and to the extra ones."""
        query = query.to(key.dtype)
        if extra is None:
            return memory_efficient_attention(query, key, value, mask, self.dropout)
        more_keys, more_values = (x.to(key.dtype).expand(query.shape[0], -1, -1, -1) for x in extra)
        p = self.dropout
        window = memory_efficient_attention_partial(query, key, value, mask, p)
        rest = memory_efficient_attention_partial(query, more_keys, more_values, None, p)
        outs, lses = (list(parts) for parts in zip(window, rest, strict=True))
        return merge_attentions(outs, lses, output_dtype=query.dtype)[0]

    def _by_distance(self, mask_row: Tensor, heads: int) -> RelativePositionBias:
        """Return the bias of the distance from the newest key that stands for [H or 1, length]."""
        table = mask_row.expand(heads, -1)
        after = table.new_zeros(heads, self.length - 1)
        return RelativePositionBias(torch.cat([table, after], dim=1))

    def _by_key(self, mask_row: Tensor, num_steps: int) -> Tensor:
        """Return what masks that differ between streams add to each key: [N, H, T, keys]."""
        steps = torch.arange(num_steps, device=mask_row.device)
        keys = torch.arange(-1, self.length - 1 + num_steps, device=mask_row.device)
        columns = (keys - steps[:, None]).clamp(0, self.length - 1)  # the band hides the others
        return mask_row[:, :, columns]

    def valid(self, seen: Tensor, active: Tensor | None) -> Tensor:
        """Return which outputs are valid, bool as `seen` [N, T], the steps seen by each."""
        valid = seen >= (self.length if self.waits else self.delay + 1)
        return valid if active is None else valid & active[:, None]


def check_window_rows(
    rows: Rows, state: WindowState, mask: Tensor | None, active: Tensor | None
) -> None:
    """Raise ValueError unless what a window is given fits the state's streams."""
    held = state.position.shape[0]
    check_rows(
        "window attention",
        held,
        active,
        query=rows.query,
        key=rows.key,
        value=rows.value,
        key_padding_mask=rows.padding,
    )
    check_mask_streams(mask, held)


def check_mask_streams(mask: Tensor | None, num_streams: int) -> None:
    """Raise ValueError unless a mask [N, ...] is of one stream, for all, or of every one."""
    if mask is not None and mask.shape[0] not in (1, num_streams):
        raise ValueError(
            f"attn_mask: expected masks of 1 or {num_streams} streams, got {mask.shape[0]}"
        )


def padding_of(padding: Tensor | None, rows: Tensor) -> Tensor:
    """Return which steps of rows [N, T, ...] are hidden, bool [N, T]: none by default."""
    if padding is not None:
        return padding
    return torch.zeros(rows.shape[:2], dtype=torch.bool, device=rows.device)
