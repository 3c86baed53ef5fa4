"""Rows whose every key has a bias so large that float32 loses the logarithm of their number."""

import math
from dataclasses import replace

import pytest
import torch

from attn_ops import _native
from numerics import library, spec_cases
from numerics.cases import DTYPES, Case, Shape, make_problem
from reference import attention, spec_attention
from reference.error_rule import assert_accurate, assert_within_rule
from reference.problem import Mask, Problem

SHAPES = (Shape(2, 133, 300, 4, 2, 24, 40), Shape(1, 3, 1100, 2, 1, 16, 16))
BIASES = (-1e4, -1e6, -1e9, 1e7)


def problem_of(shape: Shape, dtype: torch.dtype, mask: Mask, *, every: int = 1) -> Problem:
    """Return a problem in which queries 0, `every`, 2 `every`, ... score 0.

    Beside a large bias float32 would lose their scores too, and differ from float64 by that.
    """
    problem = make_problem(Case(shape, "none", dtype))
    problem.query[:, ::every] = 0
    return replace(problem, mask=mask)


def bias_of_rows(shape: Shape, number: float, *, every: int = 1) -> torch.Tensor:
    """Return a bias of `number` in rows 0, `every`, 2 `every`, ..., and 0 in the others."""
    bias = torch.zeros(1, shape.Hq, shape.Mq, shape.Mkv)
    bias[:, :, ::every] = number
    return bias


def assert_right(problem: Problem) -> None:
    """Hold the library to the error rule, but a large log-sum-exp to a few of its own ulps."""
    got, exact = library.run(problem), attention.attention(problem)
    ulp = torch.finfo(got.lse.dtype).eps
    torch.testing.assert_close(got.lse.double(), exact.lse, rtol=4 * ulp, atol=20 * ulp)
    assert_accurate(replace(got, lse=exact.lse), problem)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", BIASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_call(shape, number, dtype):
    problem = problem_of(shape, dtype, Mask(bias=torch.full((1, 1, 1, 1), number)))
    assert_right(problem)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", BIASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_among_others(shape, number, dtype):
    mask = Mask(bias=bias_of_rows(shape, number, every=2))
    problem = problem_of(shape, dtype, mask, every=2)
    assert_right(problem)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("band", [{"left": None}, {"left": 70}], ids=["causal", "window"])
def test_rows_of_a_band(band, dtype):
    shape = SHAPES[0]
    bias = bias_of_rows(shape, -1e9, every=3)
    bias[..., 100:200] = -torch.inf
    mask = Mask(right=0, anchor="bottom_right", bias=bias, dropout_p=0.2, **band)
    problem = problem_of(shape, dtype, mask, every=3)
    assert_right(problem)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # -1e9 is none in float16
@pytest.mark.parametrize("place", spec_cases.PLACES)
def test_every_part_of_a_mask(place, dtype):
    """A sink as large as the bias has its share; slopes and tables of 0 lose nothing beside it."""
    call = spec_cases.make(place, "all", dtype)
    mask, relative = call.spec, call.spec.relative
    assert relative.slopes is not None
    assert relative.table is not None
    large = replace(
        mask,
        bias=torch.full((1, 1, spec_cases.MQ, spec_cases.MKV), -1e9),
        sink=torch.full((spec_cases.HQ,), -1e9),
        relative=replace(relative, slopes=0 * relative.slopes, table=0 * relative.table),
    )
    call = replace(call, query=0 * call.query, spec=large)
    got, exact = spec_cases.run(call), spec_attention.results(call, torch.float64)
    eager = spec_attention.results(call, dtype)
    torch.testing.assert_close(got.pop("lse").double(), exact.pop("lse"), rtol=1e-6, atol=0)
    for name, result in got.items():
        assert_within_rule(name, result, exact=exact[name], yardstick=eager[name], dtype=dtype)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_change_no_bit(num_threads):
    problem = problem_of(SHAPES[0], torch.float32, Mask(bias=torch.full((1, 1, 1, 1), -1e9)))
    again = library.run(problem, num_threads=num_threads)
    for name, result in vars(library.run(problem, num_threads=2)).items():
        assert torch.equal(getattr(again, name), result), name


def test_lse_of_more_keys_keeps_its_share():
    """A caller who joins chunks may give each the lse of all: here of twice the keys' weight."""
    problem = problem_of(SHAPES[0], torch.float64, Mask(bias=torch.full((1, 1, 1, 1), -1e5)))
    exact = attention.attention(problem)
    gradient = library.unwritten(problem.value)
    _native.attention_backward(
        *(problem.query, problem.key, problem.value, exact.out),
        exact.lse + math.log(2),
        problem.grad_out,
        grad_value=gradient,
        **library.options(problem),
    )
    torch.testing.assert_close(gradient, exact.grad_value / 2, rtol=1e-8, atol=1e-8)
