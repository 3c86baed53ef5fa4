"""Multi-head attention that renews the outputs of a whole sliding window at every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attn_continual._multihead_attention import ContinualMultiheadAttention
from attn_continual._projections import torch_mask_by_head, where_kept
from attn_continual._sliding_rows import sliding_windows
from attn_continual._step_checks import check_rows
from attn_continual.ring_cache import last_rows, slot_ages
from attn_continual.window_attention import (
    ExtraRows,
    Rows,
    Window,
    WindowState,
    check_mask_streams,
    check_window_rows,
    padding_of,
)


class RetroactiveMultiheadAttention(ContinualMultiheadAttention):
    """Attend from each of the last `sequence_len` steps to all of them, at every step.

    Parameters, their names and layouts are those of `torch.nn.MultiheadAttention`, so that weights
    load both ways. Masks are torch's too: True, or -inf, hides a key.

    Shapes, for N streams, E = embed_dim, L = sequence_len, T steps:
        forward: x [T, N, E] ([N, T, E] with `batch_first`, [N, E, T] with `embed_dim_second`) to
            (output, weights), in that layout and [N, T, T], as torch's own.
        forward_step: x [N, E] to the outputs of the window, the oldest step first, [L, N, E] (or
            [N, L, E], [N, E, L]), or None until L steps were seen.
        forward_steps: x as for forward to the windows of the steps from the L-th on,
            [T', L, N, E] (or [N, T', L, E], [N, E, T', L]), or None.
    Cost of a step: O(L^2 E) for attention, O(E^2 + L E) for projections, for only the new step is
        projected into queries, keys and values. Memory O(L E).
    Numerics: nothing is summed from step to step, so nothing drifts, cancels or overflows.
    sequence_len: L, the window. forward takes sequences of any length, without a window.
    dropout: of attention weights, in training, in every mode.
    forward_returns_attn_mask: whether forward returns weights, averaged over heads, besides.
    embed_dim_second: features come before time; only with `batch_first`.
    Raises: ValueError if `sequence_len` is missing or no length.
    Source: Hedegaard et al. 2022, arXiv:2201.06268, section 3.2; the sums of its equations are
        replaced by attention over cached queries, keys and values.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        sequence_len: int | None = None,
        forward_returns_attn_mask: bool = True,
        embed_dim_second: bool = False,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            dropout,
            bias,
            add_bias_kv,
            add_zero_attn,
            kdim,
            vdim,
            batch_first,
            device,
            dtype,
            sequence_len=sequence_len,
            forward_returns_attn_mask=forward_returns_attn_mask,
            embed_dim_second=embed_dim_second,
        )

    @property
    def output_stream_axis(self) -> int:
        """The axis of streams in windows, which time first puts behind the window."""
        return 2 if self.time_axis == 0 else 0

    @property
    def window(self) -> RetroactiveWindow:
        """What attends to what at a step."""
        dropout = self.dropout if self.training else 0.0
        return RetroactiveWindow(self.sequence_len, self.sequence_len, dropout=dropout)

    def attend(
        self,
        rows: Rows,
        state: WindowState,
        attn_mask: Tensor | None,
        *,
        single: bool,
        active: Tensor | None,
        in_place: bool,
    ) -> tuple[Tensor, WindowState, Tensor]:
        """Return the outputs [N, T, L, H, K] of T windows, the new state, and valid [N, T]."""
        if single and attn_mask is None:
            return self.window.newest(
                rows, state, extra=self.extra_rows(), active=active, in_place=in_place
            )
        return self.window.windows(
            rows,
            state,
            mask=self._mask_by_head(attn_mask),
            extra=self.extra_rows(),
            active=active,
            in_place=single and in_place,
        )

    def bias_of_windows(
        self, padding: Tensor, state: WindowState, attn_mask: Tensor | None
    ) -> Tensor:
        """Return what layers that get the windows of the next T steps need for the same masks.

        padding: of these steps, bool [N, T]. state: that before them. Result: for `attend_rows` on
        rows [N * T, L, E].
        """
        mask, num_streams = self._mask_by_head(attn_mask), state.position.shape[0]
        check_rows(type(self).__name__, num_streams, None, key_padding_mask=padding)
        check_mask_streams(mask, num_streams)
        return self.window.bias(padding, state, mask)

    def _mask_by_head(self, attn_mask: Tensor | None) -> Tensor | None:
        if attn_mask is None:
            return None
        return torch_mask_by_head(attn_mask, self.sequence_len, self.num_heads)


@dataclass(frozen=True)
class RetroactiveWindow(Window):
    """Attention of every step of a window to all of it, at every step.

    Scores are computed anew each time. Sums that keys enter and leave would lose their digits when
    a key that dominated a row leaves it.

    delay: `length`, for the rings of queries hold as many.
    """

    def newest(
        self,
        rows: Rows,
        state: WindowState,
        *,
        extra: ExtraRows | None = None,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, WindowState, Tensor]:
        """Return what `windows` does for one step without a mask: keys stay where they lie."""
        check_window_rows(rows, state, None, active)
        state = self.write_step(rows, state, active, in_place)
        query = last_rows(state.query, state.position, self.length)
        ages = slot_ages(state.position, state.key.shape[1])
        seen = ages < state.position.clamp(max=self.length)[:, None]
        keep = (seen & ~state.padding)[:, None, None]
        out = self.attend(query, state.key, state.value, keep, extra)
        return out[:, None], state, self.valid(state.position[:, None], active)

    def windows(
        self,
        rows: Rows,
        state: WindowState,
        *,
        mask: Tensor | None = None,
        extra: ExtraRows | None = None,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, WindowState, Tensor]:
        """Return the outputs [N, T, length, H, Kv] of the windows that end at each of T steps.

        mask: of a window, [N or 1, H or 1, length, length]: bool, True hides; or what is added.
        in_place: the memory of `state` may be used for the new one; only of a single step.
        Also returns the new state, and valid, bool [N, T].
        """
        check_window_rows(rows, state, mask, active)
        num_streams, num_steps = rows.key.shape[:2]
        before = state.position
        bias = self.bias(padding_of(rows.padding, rows.key), state, mask)
        windows = sliding_windows(
            (state.query, state.key, state.value),
            (rows.query, rows.key, rows.value),
            before,
            self.length,
        )
        query, key, value = (x.flatten(0, 1) for x in windows)
        out = self.attend(query, key, value, bias, extra)
        if in_place:
            state = self.write_step(rows, state, active, in_place)
        else:
            state = self.write(rows, state, active)
        seen = before[:, None] + torch.arange(1, num_steps + 1, device=before.device)
        return out.unflatten(0, (num_streams, num_steps)), state, self.valid(seen, active)

    def bias(self, padding: Tensor, state: WindowState, mask: Tensor | None) -> Tensor:
        """Return what the windows that end at each of T steps see, for attention over windows.

        padding: of these steps, bool [N, T]. mask: as for `windows`.
        Returns: [N * T, H or 1, length or 1, length]: bool, True is seen; or what is added.
        """
        before, num_steps = state.position, padding.shape[1]
        (hidden,) = sliding_windows([state.padding], [padding], before, self.length)
        seen = before[:, None] + torch.arange(1, num_steps + 1, device=before.device)
        ages = torch.arange(self.length - 1, -1, -1, device=before.device)
        keep = ~hidden & (ages < seen[:, :, None])
        if mask is not None:
            mask = ~mask[:, None] if mask.dtype == torch.bool else mask[:, None]
        return where_kept(mask, keep[:, :, None, None]).flatten(0, 1)
