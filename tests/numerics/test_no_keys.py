"""Extents of 0, and queries that see no key: out 0, lse -infinity, gradients 0."""

from dataclasses import replace

import pytest
import torch

from numerics import library
from numerics.cases import DTYPES, Case, Shape, make_problem
from reference.problem import Mask, Problem, Results

SHAPE = Shape(B=2, Mq=133, Mkv=260, Hq=4, Hkv=2, K=24, Kv=40)


def gradients(results: Results) -> list[torch.Tensor]:
    return [results.grad_query, results.grad_key, results.grad_value]


def problem_of(dtype: torch.dtype, mask: Mask = Mask(), shape: Shape = SHAPE) -> Problem:  # noqa: B008
    return replace(make_problem(Case(shape, "none", dtype)), mask=mask)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("extent", ["B", "Mq", "Mkv", "Hq"])
def test_empty_extent(extent, dtype):
    results = library.run(problem_of(dtype, shape=replace(SHAPE, **{extent: 0})))
    assert torch.all(results.lse == -torch.inf)
    for name in ("out", "grad_query", "grad_key", "grad_value"):
        assert torch.all(getattr(results, name) == 0), name


NO_KEYS = {
    "band_before_first_key": Mask(right=-1000),
    "band_after_last_key": Mask(left=-1000),
    "keep_nothing": Mask(bias=torch.zeros(1, 1, 1, 1, dtype=torch.bool)),
    "minus_infinity": Mask(bias=torch.full((1, 4, 133, 260), -torch.inf)),
    "band_and_keep_disagree": Mask(right=0, bias=torch.arange(260).view(1, 1, 1, 260) >= 133),
    "dropout_besides": Mask(right=-1000, dropout_p=0.5),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", NO_KEYS.values(), ids=NO_KEYS)
def test_no_query_sees_a_key(mask, dtype):
    results = library.run(problem_of(dtype, mask))
    assert torch.all(results.lse == -torch.inf)
    assert torch.all(results.out == 0)
    for gradient in gradients(results):
        assert torch.all(gradient == 0)
    if results.grad_bias is not None:
        assert torch.all(results.grad_bias == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lowest_number_excludes(dtype):
    lowest = torch.full((1, 1, 133, 260), torch.finfo(dtype).min, dtype=dtype)
    results = library.run(problem_of(dtype, Mask(bias=lowest)))
    assert torch.all(results.lse == -torch.inf)
    for result in (results.out, *gradients(results)):
        assert torch.all(result == 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_some_queries_see_no_key(dtype):
    keep = torch.rand(2, 4, 133, 260, generator=torch.Generator().manual_seed(0)) < 0.5
    keep[:, :, ::3] = False
    problem = problem_of(dtype, Mask(bias=keep))
    results = library.run(problem)
    assert torch.all(results.out[:, ::3] == 0)
    assert torch.all(results.grad_query[:, ::3] == 0)
    assert torch.all(results.lse[:, :, ::3] == -torch.inf)

    changed = problem.grad_out.clone()
    changed[:, ::3] = 1000.0
    for mine, other in zip(
        gradients(results), gradients(library.run(replace(problem, grad_out=changed))), strict=True
    ):
        assert torch.equal(mine, other), "a query without keys reached a gradient"


@pytest.mark.parametrize("dtype", DTYPES)
def test_excluded_keys_get_zero_gradients(dtype):
    keep = torch.ones(1, 1, 1, 260, dtype=torch.bool)
    keep[..., 7:200] = False
    results = library.run(problem_of(dtype, Mask(bias=keep)))
    for gradient in (results.grad_key, results.grad_value):
        assert torch.all(gradient[:, 7:200] == 0)
        assert torch.any(gradient[:, :7] != 0)
