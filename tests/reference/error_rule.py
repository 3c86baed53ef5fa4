"""The error rule, and every tolerance of the numerics tests.

The largest error against float64 is at most a multiple of that of eager PyTorch in the same dtype,
plus a floor: eager may be exact by luck where there are few elements.
"""

from dataclasses import fields

import torch
from torch import Tensor

from reference import attention, eager
from reference.problem import Problem, Results

FACTORS = {"out": 2.0, "lse": 2.0}
GRADIENT_FACTOR = 3.0
FLOORS = {
    torch.float32: 1e-5,
    torch.bfloat16: 1e-5,
    torch.float16: 1e-5,
    torch.float64: 1e-11,  # float64 throughout: float32 anywhere would show
}
NUMBERS_PER_HEAD = ("grad_slopes", "grad_table", "grad_sink")
"""Sums over all scores of a head: a few ulps of them count as floor, for eager's own error over so
few numbers is luck."""


def assert_accurate(got: Results, problem: Problem) -> None:
    """Fail unless every result of `problem` is within the error rule."""
    exact, yardstick = attention.attention(problem), eager.attention(problem)
    for field in fields(Results):
        name = field.name
        assert_within_rule(
            name,
            getattr(got, name),
            exact=getattr(exact, name),
            yardstick=getattr(yardstick, name),
            dtype=problem.query.dtype,
        )


def assert_within_rule(
    name: str,
    got: Tensor | None,
    *,
    exact: Tensor | None,
    yardstick: Tensor | None,
    dtype: torch.dtype,
) -> None:
    """Fail with the worst element unless `got` is about as close to `exact` as `yardstick` is."""
    if got is None or exact is None or yardstick is None:
        assert got is exact is yardstick is None, f"{name}: computed by some, left out by others"
        return
    assert got.shape == exact.shape, f"{name}: shape {tuple(got.shape)}, not {tuple(exact.shape)}"
    if got.numel() == 0:
        return
    error, scale_of_error = _errors(got, exact), _errors(yardstick, exact).max().item()
    floor = FLOORS[dtype]
    if name in NUMBERS_PER_HEAD:
        floor *= max(1.0, exact.abs().max().item() / 10)
    allowed = FACTORS.get(name, GRADIENT_FACTOR) * scale_of_error + floor
    largest = error.max().item()
    if largest <= allowed:
        return
    worst = torch.unravel_index(error.argmax(), error.shape)
    raise AssertionError(
        f"{name}: error {largest:.3g} at {tuple(int(i) for i in worst)}, allowed "
        f"{allowed:.3g} (eager's {scale_of_error:.3g}); got {got[worst].item():.8g}, "
        f"exact {exact[worst].item():.8g}"
    )


def _errors(got: Tensor, exact: Tensor) -> Tensor:
    """Return |got - exact|, 0 where both are the same infinity and infinity where `got` is NaN."""
    wide = got.double()
    return (wide - exact).abs().masked_fill(wide == exact, 0.0).nan_to_num(nan=torch.inf)
