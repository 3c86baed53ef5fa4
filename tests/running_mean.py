"""The simplest continual module that there is, for tests of what all of them share."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from attn_continual import ContinualModule
from attn_continual.ring_cache import advance, last_rows, write


class State(NamedTuple):
    rows: Tensor
    """[N, window, width]"""
    position: Tensor
    """int64 [N]"""


class RunningMean(ContinualModule):
    """The mean over the last `window` steps of a projection of each; x [N, T, width]."""

    def __init__(self, width=3, window=4, delay=1, dtype=torch.float64):
        super().__init__()
        self.receptive_field = window
        self.delay = delay
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(width, width, generator=generator, dtype=dtype))

    def initial_state(self, num_streams, *, device=None, dtype=None):
        shape = (num_streams, self.receptive_field, self.weight.shape[0])
        rows = torch.zeros(shape, device=device, dtype=dtype or self.weight.dtype)
        return State(rows, torch.zeros(num_streams, dtype=torch.int64, device=device))

    def step(self, x, state, *, active=None, in_place=False):
        out, state, valid = self.steps(x[:, None], state, active=active, in_place=in_place)
        return out[:, 0], state, valid[:, 0]

    def steps(self, x, state, *, active=None, in_place=False):
        del in_place
        before = last_rows(state.rows, state.position, self.receptive_field - 1)
        rows = x @ self.weight
        rows_seen = torch.cat([before, rows], 1)
        windows = [rows_seen[:, i : i + x.shape[1]] for i in range(self.receptive_field)]
        out = torch.stack(windows).mean(0)
        ends = state.position[:, None] + torch.arange(1, x.shape[1] + 1)
        valid = ends >= self.receptive_field
        new = State(
            write(state.rows, rows, state.position, active),
            advance(state.position, x.shape[1], active),
        )
        return out, new, valid if active is None else valid & active[:, None]

    def forward(self, x):
        return (x @ self.weight).unfold(1, self.receptive_field, 1).mean(-1)
