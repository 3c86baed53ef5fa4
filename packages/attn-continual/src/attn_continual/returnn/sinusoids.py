"""Sines and cosines of positions, [sin of every frequency | cos of every frequency]."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_frequencies(features: int, device: torch.device | str | None) -> Tensor:
    """Return 10000^(-2 i / features) for i < features / 2: float64 [features / 2]."""
    _check_even("relative_positional_encoding", features)
    index = torch.arange(features // 2, dtype=torch.float64, device=device)
    return 10000.0 ** (-2 * index / features)


def absolute_frequencies(features: int, base: float, device: torch.device | str | None) -> Tensor:
    """Return base^(-i / (features / 2 - 1)), as tensor2tensor does; 1 for the only one of two."""
    _check_even("sinusoidal_positional_encoding", features)
    index = torch.arange(features // 2, dtype=torch.float64, device=device)
    return base ** (-index / max(features // 2 - 1, 1))


def sinusoids(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [sin(p w_0), ..., cos(p w_0), ...] of positions [...]: [..., features].

    Angles are float64: in float32 those of far positions would keep few digits.
    """
    angles = positions.to(torch.float64)[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)


def floating_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return the dtype of encodings by its name, such as "float32", or as it is.

    Raises: ValueError if it is none of floating point.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"positional encoding: expected dtype, floating point, got {dtype!r}")
    return found


def _check_even(who: str, features: int) -> None:
    if features % 2 != 0:
        raise ValueError(
            f"{who}: expected an even number of features, half sines and half cosines, got "
            f"{features}"
        )
