"""Fixed encodings of positions on a circle: the last position lies beside the first."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn


class CyclicPositionalEncoding(nn.Module):
    """Look up rows of a fixed pattern that goes round as positions do.

    Each feature is a sine or cosine of a triangle wave with a period and a phase of its own, less
    its mean over the positions.

    Shapes: positions int64 of any shape, in [0, num_embeddings); result [..., embedding_dim].
    mean_pooling: average each row with the two before and the two after it.
    Raises: ValueError for no positions, or fewer than 2 features.
    Source: Ma et al. 2021, arXiv:2110.02544, equation 4 and appendix B.
    """

    pattern: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        mean_pooling: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if num_embeddings < 1 or embedding_dim < 2:
            raise ValueError(
                "CyclicPositionalEncoding: expected a position and 2 features or more, got "
                f"{num_embeddings} and {embedding_dim}"
            )
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        rows = _waves(num_embeddings, embedding_dim)
        pooled = [rows.roll(shift, 0) for shift in (_NEIGHBOURS if mean_pooling else (0,))]
        pattern = torch.stack(pooled).mean(0) - rows.mean(0)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self.register_buffer("pattern", pattern.to(device, dtype))

    def forward(self, positions: Tensor) -> Tensor:
        """Return the rows of `positions`."""
        return self.pattern[positions]


_NEIGHBOURS: Final = (-2, -1, 0, 1, 2)


def _waves(num_positions: int, num_features: int) -> Tensor:
    """Return the features of each position before pooling, float64 [positions, features]."""
    half = num_features // 2
    periods = _periods(num_positions, half)
    positions = torch.arange(num_positions, dtype=torch.float64)
    waves = []
    for feature in range(num_features):
        third = feature // 3 * 3 + 1  # three neighbours share a period
        period = periods[third] if third < half else periods[-1]
        # Stretched so that a whole number of periods goes round.
        stretched = positions * period * math.ceil(num_positions / period) / num_positions
        phase = 2 * math.pi * min(half - feature, 0) / half
        triangle = (stretched % (2 * period) - period).abs()
        angle = 2 * math.pi / period * triangle + phase
        waves.append(angle.cos() if feature % 2 else angle.sin())
    return torch.stack(waves, dim=1)


def _periods(longest: int, count: int) -> list[int]:
    """Return periods that rise evenly from the `count`-th root of the longest up to it."""
    first = longest ** (1 / count)
    rise = (longest - first) / max(count - 1, 1)
    return [int(first + k * rise) for k in range(count - 1)] + [longest]
