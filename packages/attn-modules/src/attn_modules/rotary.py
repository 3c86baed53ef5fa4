"""Rotary position embeddings: queries and keys turned by angles that grow with their positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class RotaryEmbedding(nn.Module):
    """Turn pairs of channels of row m by m * base ** (-2 i / dim_model), for the i-th pair.

    A score q_m k_n then depends on the positions by m - n alone. Pair i is made of channels i and
    i + dim_model / 2 (the halves' layout of GPT-NeoX and xFormers), where the paper pairs
    channels 2 i and 2 i + 1: the same up to the order of the channels.

    Shapes: q [..., Mq, dim_model]; k [..., Mkv, dim_model], any lengths; the results likewise.
    Numerics: angles and turns in float32, in float64 for float64 inputs; results in the inputs'
        dtypes.
    state_dict: empty; the `inv_freq` of xFormers' checkpoints is accepted and not needed.
    Raises: ValueError if `dim_model` is not even and positive, or not the inputs' width.
    Source: Su et al. 2021, arXiv:2104.09864, eq. 34.
    """

    def __init__(self, dim_model: int, *, base: float = 10000.0) -> None:
        super().__init__()
        if dim_model <= 0 or dim_model % 2:
            raise ValueError(
                f"RotaryEmbedding: expected dim_model, the even width of a head, got {dim_model}"
            )
        self.dim_model = dim_model
        self.base = base
        self.register_load_state_dict_pre_hook(_leave_out_frequencies)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return the queries and keys, turned; each of them counts positions from 0."""
        return self._turn(q), self._turn(k)

    def _turn(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.dim_model:
            raise ValueError(
                f"RotaryEmbedding: expected inputs [..., M, {self.dim_model}], got {list(x.shape)}"
            )
        dtype = torch.promote_types(x.dtype, torch.float32)
        # Made per call: a buffer would lose its precision to .half(), a cache would be state.
        channels = torch.arange(0, self.dim_model, 2, device=x.device, dtype=dtype)
        frequencies = self.base ** (-channels / self.dim_model)
        positions = torch.arange(x.shape[-2], device=x.device, dtype=dtype)
        angles = positions[:, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        first, second = x.to(dtype).chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return turned.to(x.dtype)

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        return f"dim_model={self.dim_model}, base={self.base}"


def _leave_out_frequencies(
    _module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    state_dict.pop(prefix + "inv_freq", None)
