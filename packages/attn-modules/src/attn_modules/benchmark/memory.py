"""Measures how far a mechanism's memory grows at its peak."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from attn_modules.benchmark.cases import GROWTH_CASES
from attn_ops.benchmark.memory import measure_peaks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from attn_modules.benchmark.growth import GrowthCase


def measure_extra_bytes(case: GrowthCase, rows: Sequence[int]) -> list[int]:
    """Return the peak of a forward and its backward beyond inputs, result and gradients.

    One number for each of `rows`, on one thread. Raises: RuntimeError if the process fails.
    """
    return measure_peaks([partial(_prepare, case.title, count) for count in rows])


def _prepare(title: str, rows: int) -> Callable[[], list[torch.Tensor]]:
    (case,) = [case for case in GROWTH_CASES if case.title == title]
    attention, (*operands, grad_out) = case.build(rows), case.inputs(rows)
    leaves = [*operands, *attention.parameters()]

    def train() -> list[torch.Tensor]:
        out = attention(*operands)
        gradients = torch.autograd.grad(out, leaves, grad_out, allow_unused=True)
        return [out.detach(), *(x for x in gradients if x is not None)]

    return train
