"""How the time and memory of each mechanism grow with the number of rows, and how they may."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from attn_modules import ATTENTION_REGISTRY, Attention, build_attention
from attn_ops.benchmark.case import Contender
from attn_ops.benchmark.measure import Timing, time_in_turns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Options = Callable[[int], dict[str, Any]]
"""The arguments of a constructor, for so many rows."""

_PAGE_BYTES = 4096  # what resident memory is counted in

WIDTH = 64
"""Of queries, keys and values: [1, 1, M, 64] in float32."""


@dataclass(frozen=True)
class GrowthCase:
    """One mechanism, and the greatest power of the number of rows that its time may grow by."""

    name: str
    """As registered."""
    options: Options
    form: str = ""
    """What sets it apart from others of its name."""
    aim: float | None = None

    @property
    def title(self) -> str:
        """Return what sets this case apart."""
        return f"{self.name} {self.form}".rstrip()

    def build(self, rows: int) -> Attention:
        """Return the mechanism for so many rows, in training."""
        torch.manual_seed(0)
        return build_attention({"name": self.name, "dropout": 0.0, **self.options(rows)})

    def inputs(self, rows: int) -> list[Tensor]:
        """Draw queries, keys, values and the gradient of the result from a normal distribution."""
        has_heads = ATTENTION_REGISTRY[self.name].constructor.supports_head_dimension
        generator = torch.Generator().manual_seed(0)
        shape = (1, 1, rows, WIDTH) if has_heads else (1, rows, WIDTH)
        drawn = [torch.randn(shape, generator=generator) for _ in range(4)]
        return [x.requires_grad_() for x in drawn[:3]] + drawn[3:]


@dataclass(frozen=True)
class Cost:
    """What a mechanism costs for one number of rows."""

    rows: int
    forward: Timing
    backward: Timing
    extra_bytes: int | None
    """The peak of a forward and its backward beyond inputs, result and gradients."""


@dataclass(frozen=True)
class Growth:
    """The costs of one mechanism, by rows."""

    case: GrowthCase
    costs: tuple[Cost, ...]

    @property
    def forward_exponent(self) -> float:
        """Return the power of the number of rows that a forward's time grows by."""
        return self._exponent([cost.forward.median for cost in self.costs])

    @property
    def backward_exponent(self) -> float:
        """Return that of a backward's time."""
        return self._exponent([cost.backward.median for cost in self.costs])

    @property
    def memory_exponent(self) -> float | None:
        """Return that of the extra memory, or None where it was not measured."""
        sizes = [cost.extra_bytes for cost in self.costs]
        return self._exponent([max(size, _PAGE_BYTES) for size in sizes if size is not None])

    @property
    def meets_aim(self) -> bool | None:
        """Return whether both times grow as slowly as they should; None where there is no aim."""
        if self.case.aim is None:
            return None
        return max(self.forward_exponent, self.backward_exponent) <= self.case.aim

    def _exponent(self, values: Sequence[float]) -> float:
        return fitted_exponent([cost.rows for cost in self.costs], values)


def fitted_exponent(rows: Sequence[int], values: Sequence[float]) -> float:
    """Return the slope of the line of least squares through the logarithms; NaN for one point."""
    if len(rows) != len(values) or len(rows) < 2:
        return math.nan
    x = [math.log(count) for count in rows]
    y = [math.log(value) for value in values]
    x_mean, y_mean = math.fsum(x) / len(x), math.fsum(y) / len(y)
    products = math.fsum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return products / math.fsum((a - x_mean) ** 2 for a in x)


def time_case(case: GrowthCase, rows: int, threads: int, seconds: float) -> tuple[Timing, Timing]:
    """Return the times of a forward, without a gradient, and of a backward."""
    attention, (*operands, grad_out) = case.build(rows), case.inputs(rows)
    out = attention(*operands)
    leaves = [*operands, *attention.parameters()]
    run = partial(torch.autograd.grad, out, leaves, grad_out, retain_graph=True, allow_unused=True)
    run()  # what a first call alone costs has been spent now
    (backward,) = time_in_turns([Contender(run)], threads, seconds)
    with torch.no_grad():
        (forward,) = time_in_turns([Contender(partial(attention, *operands))], threads, seconds)
    return forward, backward
