"""Single-output attention as one would write it in plain torch: keys and values move every step.

Source: Hedegaard et al. 2022, arXiv:2201.06268, section 3.3, with the memories of the authors' own
implementation.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear

if TYPE_CHECKING:
    from torch import nn


class RollingAttention:
    """The newest query of a window of `length` steps, with the weights of torch's layer."""

    def __init__(self, mha: nn.MultiheadAttention, length: int) -> None:
        self.mha, self.length = mha, length
        self.key = self.value = torch.empty(0)

    def fill(self, rows: Tensor) -> None:
        """Remember the last `length` of the steps [N, T, E]."""
        _, key, value = self._project(rows[:, -self.length :])
        self.key, self.value = key.mT.contiguous(), value.contiguous()

    def step(self, x: Tensor) -> Tensor:
        """Return the output [N, E] of the next step [N, E]."""
        query, key, value = self._project(x[:, None])
        self.key = torch.roll(self.key, -1, dims=2)
        self.key[:, :, -1] = key[:, 0]
        self.value = torch.roll(self.value, -1, dims=1)
        self.value[:, -1] = value[:, 0]
        weights = torch.bmm(query / math.sqrt(query.shape[-1]), self.key).softmax(-1)
        out = torch.bmm(weights, self.value).reshape(x.shape)
        return linear(out, self.mha.out_proj.weight, self.mha.out_proj.bias)

    def _project(self, rows: Tensor) -> list[Tensor]:
        """Return queries, keys and values [N * H, T, E / H]."""
        weight, heads = self.mha.in_proj_weight, self.mha.num_heads
        packed = linear(rows, weight, self.mha.in_proj_bias)
        streams, steps, width = rows.shape
        return [
            part.view(streams, steps, heads, width // heads).transpose(1, 2).flatten(0, 1)
            for part in packed.chunk(3, dim=-1)
        ]
