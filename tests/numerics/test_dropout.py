"""Dropout: the draws that `attn/mask.h` promises, their statistics, and the edges p = 0 and 1."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from numerics import library
from numerics.cases import DTYPES, Case, Shape, make_problem
from reference.error_rule import assert_accurate
from reference.philox import keep_factors
from reference.problem import Mask, Problem

SHAPE = Shape(B=2, Mq=70, Mkv=67, Hq=3, Hkv=1, K=8, Kv=67)


def revealing_problem(dtype: torch.dtype, mask: Mask) -> Problem:
    """Return a problem whose output row is its row of dropped-out probabilities.

    All probabilities are 1 / Mkv, and value j is Mkv times the j-th unit vector.
    """
    problem = make_problem(Case(SHAPE, "none", dtype))
    units = torch.eye(SHAPE.Mkv, dtype=dtype).mul(SHAPE.Mkv).view(1, SHAPE.Mkv, 1, SHAPE.Mkv)
    value = units.expand(SHAPE.B, -1, -1, -1)
    return replace(problem, query=torch.zeros_like(problem.query), value=value, mask=mask)


def factors(dtype: torch.dtype, mask: Mask) -> Tensor:
    """Return the factors that the library's dropout used: [B, H, Mq, Mkv]."""
    out, _ = library.forward(revealing_problem(dtype, mask))
    return out.transpose(1, 2).double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("seed", "offset"), [(0, 0), (1, 0), (0, 1), (2**64 - 1, 2**64 - 1), (2**33 + 5, 2**40 + 9)]
)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_draws_are_those_of_the_reference(p, seed, offset, dtype):
    mask = Mask(dropout_p=p, dropout_seed=seed, dropout_offset=offset)
    expected = keep_factors((SHAPE.B, SHAPE.Hq, SHAPE.Mq, SHAPE.Mkv), p, seed, offset)
    got = factors(dtype, mask)
    assert torch.equal(got > 0, expected > 0)
    rounding = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-12
    torch.testing.assert_close(got, expected, rtol=4 * rounding, atol=0)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_of_kept_probabilities(p):
    kept = factors(torch.float32, Mask(dropout_p=p, dropout_seed=12)) > 0
    deviation = (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - p)) < 4 * deviation
    for axis in range(4):  # nor does any batch entry, head, query or key stand out
        others = [a for a in range(4) if a != axis]
        shares = kept.double().mean(others)
        spread = deviation * kept.shape[axis] ** 0.5
        assert torch.all((shares - (1 - p)).abs() < 5 * spread), f"axis {axis}"


def test_draws_of_neighbouring_seeds_and_offsets_are_independent():
    def kept(seed: int, offset: int) -> Tensor:
        mask = Mask(dropout_p=0.5, dropout_seed=seed, dropout_offset=offset)
        return (factors(torch.float32, mask) > 0).double() - 0.5

    one = kept(7, 0)
    for other in (kept(8, 0), kept(7, 1)):
        correlation = 4 * (one * other).mean()
        assert abs(correlation) < 4 / one.numel() ** 0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [Mask(), Mask(right=20, left=30)], ids=["full", "window"])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
def test_forward_and_backward(p, mask, dtype):
    problem = make_problem(Case(Shape(2, 150, 139, 4, 2, 24, 16), "none", dtype))
    problem = replace(problem, mask=replace(mask, dropout_p=p, dropout_seed=99))
    assert_accurate(library.run(problem), problem)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_dropped(dtype):
    problem = make_problem(Case(SHAPE, "none", dtype))
    seeded = replace(problem, mask=Mask(dropout_p=0.0, dropout_seed=5))
    assert torch.equal(library.run(seeded).out, library.run(problem).out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_everything_dropped(dtype):
    problem = make_problem(Case(SHAPE, "none", dtype))
    results = library.run(replace(problem, mask=Mask(dropout_p=1.0)))
    undropped = library.run(problem)
    assert torch.all(results.out == 0)
    assert torch.all(results.grad_value == 0)
    assert torch.equal(results.lse, undropped.lse)  # the draw follows the softmax
    assert_accurate(results, replace(problem, mask=Mask(dropout_p=1.0)))


def test_draw_does_not_depend_on_what_is_tiled_with_it():
    """A query sees the same draws alone, since they are counted by its place in the problem."""
    mask = Mask(dropout_p=0.5, dropout_seed=4)
    problem = make_problem(Case(SHAPE, "none", torch.float32))
    everything, _ = library.forward(replace(problem, mask=mask))
    few = replace(
        problem,
        query=problem.query[:1, :5],
        key=problem.key[:1],
        value=problem.value[:1],
        grad_out=problem.grad_out[:1, :5],
        grad_lse=problem.grad_lse[:1, :, :5],
        mask=mask,
    )
    out, _ = library.forward(few)
    torch.testing.assert_close(out, everything[:1, :5], rtol=0, atol=1e-6)
