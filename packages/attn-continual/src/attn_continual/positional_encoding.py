"""Encodings of positions for streams without end: a table of them goes round and round."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from attn_continual._step_checks import check_rows
from attn_continual.continual_module import ContinualModule
from attn_continual.cyclic_positional_encoding import CyclicPositionalEncoding
from attn_continual.streams import loadable


@loadable
class RecyclingState(NamedTuple):
    """Where in the table N streams are."""

    row: Tensor
    """int64 [N]: that of the next step"""


class RecyclingPositionalEncoding(ContinualModule):
    """Add to each step the row of a table that is as long as `num_embeds`, and then begins anew.

    A step keeps its row while it moves through a window. So that no two steps of a window of L,
    nor of any two that overlap, share a row, take `num_embeds` of 2 L - 1 or more.

    Shapes: forward and forward_steps [N, C, T] to the same, C = embed_dim; forward_step [N, C].
    learned: the table is a parameter, `pe.weight`; else a fixed one, `pe.pattern`, that of
        `CyclicPositionalEncoding`.
    forward_update_index_steps: how many rows `forward` goes on each time it is called, so that
        training meets every row at every place of a window.
    Raises: ValueError for no row, or no feature.
    Source: Hedegaard et al. 2022, arXiv:2201.06268.
    """

    time_axis = 2
    _first_row: Tensor
    """int64 []: where streams begin"""

    def __init__(
        self,
        embed_dim: int,
        num_embeds: int,
        learned: bool = True,
        forward_update_index_steps: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if embed_dim < 1 or num_embeds < 1:
            raise ValueError(
                "RecyclingPositionalEncoding: expected embed_dim and num_embeds of 1 or more, got "
                f"{embed_dim} and {num_embeds}"
            )
        super().__init__()
        table = nn.Embedding if learned else CyclicPositionalEncoding
        self.pe = table(num_embeds, embed_dim, device=device, dtype=dtype)
        self.embed_dim = embed_dim
        self.num_embeds = num_embeds
        self.forward_update_index_steps = forward_update_index_steps
        # A tensor, so that a graph of `forward` serves every call.
        first_row = torch.zeros((), dtype=torch.int64, device=device)
        self.register_buffer("_first_row", first_row, persistent=False)

    def initial_state(
        self,
        num_streams: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> RecyclingState:
        """Return the state of streams at the first row; it has no dtype but int64."""
        del dtype
        if device is None:
            device = next(iter(self.pe.state_dict().values())).device
        return RecyclingState(torch.zeros(num_streams, dtype=torch.int64, device=device))

    def step(
        self,
        x: Tensor,
        state: RecyclingState,
        *,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, RecyclingState, Tensor]:
        """Return x [N, C] with the next row added, the new state, and valid, bool [N]."""
        out, state, valid = self.steps(x.unsqueeze(-1), state, active=active, in_place=in_place)
        return out[:, :, 0], state, valid[:, 0]

    def steps(
        self,
        x: Tensor,
        state: RecyclingState,
        *,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, RecyclingState, Tensor]:
        """Return x [N, C, T] with the next T rows added, the new state, and valid, bool [N, T]."""
        del in_place  # a new index costs nothing
        self._check(x)
        check_rows(type(self).__name__, state.row.shape[0], active, x=x.transpose(1, 2))
        num_steps = x.shape[2]
        steps = torch.arange(num_steps, device=state.row.device)
        rows = (state.row[:, None] + steps) % self.num_embeds
        out = x + self.pe(rows).transpose(1, 2)
        if active is None:
            active = torch.ones_like(state.row, dtype=torch.bool)
        valid = active[:, None].expand(-1, num_steps)
        return out, self._moved(state, num_steps * active), valid

    def forward(self, x: Tensor, update_index_steps: int | None = None) -> Tensor:
        """Return x [N, C, T] with T rows added, and go on by less than T.

        All sequences of a batch begin at the same row, at which streams that begin later do too.
        Those that have begun are left alone.
        update_index_steps: how many rows to go on; default: `forward_update_index_steps`.
        Raises: ValueError for more steps than rows.
        """
        self._check(x)
        num_streams, _, num_steps = x.shape
        if num_steps > self.num_embeds:
            raise ValueError(
                f"RecyclingPositionalEncoding: expected at most {self.num_embeds} steps, as many "
                f"as there are rows, got {num_steps}; take more num_embeds"
            )
        out, _, _ = self.steps(x, self._moved(self.initial_state(num_streams), self._first_row))
        go_on = (
            self.forward_update_index_steps if update_index_steps is None else update_index_steps
        )
        self._first_row = (self._first_row + go_on) % self.num_embeds
        return out

    def clean_state(self) -> None:
        """Forget every step, and go back to the first row."""
        super().clean_state()
        self._first_row = torch.zeros_like(self._first_row)

    def _state_for(self, x: Tensor, stream_axis: int) -> RecyclingState:
        state = super()._state_for(x, stream_axis)
        return self._moved(state, self._first_row) if self._state is None else state

    def _moved(self, state: RecyclingState, steps: Tensor | int) -> RecyclingState:
        return RecyclingState((state.row + steps) % self.num_embeds)

    def _check(self, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[1] != self.embed_dim:
            raise ValueError(
                f"RecyclingPositionalEncoding: expected [N, {self.embed_dim}, T], or without T for "
                f"a step, got {list(x.shape)}"
            )
