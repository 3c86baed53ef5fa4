"""Checks of what a step is given, made before anything of a state is written."""

from __future__ import annotations

import torch
from torch import Tensor


def check_rows(who: str, num_streams: int, active: Tensor | None, **rows: Tensor | None) -> None:
    """Raise ValueError unless rows [N, T, ...] are of the state's streams, and as many of each.

    rows: by what they are called in messages; the first tells T, and None is left out.
    active: bool [N], or None.
    """
    num_steps = None
    for name, x in rows.items():
        if x is None:
            continue
        given, steps = x.shape[:2]
        if given != num_streams:
            raise ValueError(
                f"{who}: expected {name} of {num_streams} streams, as the state has, got {given}; "
                "select, stack or reset streams of the state to change them"
            )
        num_steps = steps if num_steps is None else num_steps
        if steps != num_steps:
            raise ValueError(
                f"{who}: expected {name} of {num_steps} steps, as {next(iter(rows))}, got {steps}"
            )
    if active is None:
        return
    if active.dtype != torch.bool or active.dim() != 1 or active.shape[0] != num_streams:
        raise ValueError(
            f"{who}: expected active, bool [{num_streams}], got {active.dtype} {list(active.shape)}"
        )


def check_dtype(who: str, x: Tensor, weight: Tensor) -> None:
    """Raise ValueError unless x has the dtype of the weights that it meets, or autocast is on."""
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(
            f"{who}: expected {weight.dtype}, as the weights are, got {x.dtype}; cast one of them"
        )
