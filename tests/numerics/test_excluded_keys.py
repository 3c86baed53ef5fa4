"""NaN and infinity in keys that a mask excludes reach no result; in keys it allows, they do."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from numerics import library
from numerics.cases import DTYPES, Case, Shape, make_problem
from reference.error_rule import assert_accurate
from reference.problem import Mask, Problem

SHAPE = Shape(B=2, Mq=70, Mkv=300, Hq=4, Hkv=2, K=24, Kv=40)
DECODE = replace(SHAPE, Mq=1)
DECODE_BY_TILES = replace(SHAPE, Mq=3)
"""Of enough query rows per key head for tile registers, where there are some."""
EXCLUDED = slice(130, 190)
"""Keys that no query sees in the masks below; some share a tile with keys that are seen."""


def additive(dtype: torch.dtype) -> Tensor:
    bias = torch.zeros(1, 1, 1, SHAPE.Mkv, dtype=dtype)
    bias[..., EXCLUDED] = -math.inf
    return bias


def mask_of(kind: str, dtype: torch.dtype) -> Mask:
    if kind == "keep":
        return Mask(bias=additive(torch.float32) == 0)
    if kind == "bias":
        return Mask(bias=additive(dtype))
    if kind == "bias_float32":
        return Mask(bias=additive(torch.float32))
    return Mask(bias=additive(dtype).expand(SHAPE.B, SHAPE.Hq, -1, -1), dropout_p=0.2)


def poison(x: Tensor, keys: slice, canary: float) -> Tensor:
    poisoned = x.clone()
    poisoned[:, keys] = canary
    return poisoned


def make(shape: Shape, dtype: torch.dtype, mask: Mask) -> Problem:
    return replace(make_problem(Case(shape, "none", dtype)), mask=mask)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("canary", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["keep", "bias", "bias_float32", "bias_and_dropout"])
@pytest.mark.parametrize("shape", [SHAPE, DECODE, DECODE_BY_TILES], ids=str)
def test_canary_behind_a_bias_reaches_no_result(shape, kind, canary, dtype):
    problem = make(shape, dtype, mask_of(kind, dtype))
    poisoned = replace(
        problem,
        key=poison(problem.key, EXCLUDED, canary),
        value=poison(problem.value, EXCLUDED, canary),
    )
    assert_accurate(library.run(poisoned), problem)


@pytest.mark.parametrize("dtype", DTYPES)
def test_canary_in_tiles_that_a_keep_mask_hides_reaches_no_result(dtype):
    hidden = slice(200, 600)
    keep = torch.ones(1, 1, 1, 900, dtype=torch.bool)
    keep[..., hidden] = False
    problem = make(replace(SHAPE, Mkv=900), dtype, Mask(bias=keep))
    poisoned = replace(
        problem,
        key=poison(problem.key, hidden, math.nan),
        value=poison(problem.value, hidden, math.nan),
    )
    assert_accurate(library.run(poisoned), problem)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("canary", [math.nan, math.inf])
@pytest.mark.parametrize(
    "mask",
    [
        Mask(right=9),
        Mask(right=14),
        Mask(left=5, right=20),
        Mask(left=3, right=9, dropout_p=0.2),
    ],
    ids=["causal", "causal_across_vectors", "window", "window_and_dropout"],
)
@pytest.mark.parametrize("shape", [SHAPE, DECODE, DECODE_BY_TILES], ids=str)
def test_canary_outside_the_band_reaches_no_result(shape, mask, canary, dtype):
    problem = make(shape, dtype, mask)
    unseen = slice(shape.Mq + mask.right, None)
    poisoned = replace(
        problem,
        key=poison(problem.key, unseen, canary),
        value=poison(problem.value, unseen, canary),
    )
    assert_accurate(library.run(poisoned), problem)


@pytest.mark.parametrize("dtype", DTYPES)
def test_canary_reaches_only_the_queries_that_see_it(dtype):
    problem = make(SHAPE, dtype, Mask(right=0))
    poisoned = replace(
        problem,
        key=poison(problem.key, slice(40, 41), math.nan),
        value=poison(problem.value, slice(40, 41), math.inf),
    )
    clean, mine = library.run(problem), library.run(poisoned)
    assert torch.all(mine.out[:, 40:].isnan())
    assert torch.all(mine.lse[:, :, 40:].isnan())
    assert torch.equal(mine.out[:, :40], clean.out[:, :40])
    assert torch.equal(mine.lse[:, :, :40], clean.lse[:, :, :40])
    assert torch.all(mine.grad_query[:, 40:].isnan())
    assert torch.equal(mine.grad_query[:, :40], clean.grad_query[:, :40])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [SHAPE, DECODE, DECODE_BY_TILES], ids=str)
@pytest.mark.parametrize("field", ["query", "key", "value"])
def test_allowed_nan_makes_its_rows_nan(field, shape, dtype):
    problem = make(shape, dtype, Mask())
    poisoned = getattr(problem, field).clone()
    poisoned[1, -1, -1] = math.nan  # batch entry 1, last position, last head
    out, lse = library.forward(replace(problem, **{field: poisoned}))
    own_heads = slice(-1, None) if field == "query" else slice(-shape.Hq // shape.Hkv, None)
    own_rows = slice(-1, None) if field == "query" else slice(None)
    expected = torch.zeros(out.shape[:-1], dtype=torch.bool)
    expected[1, own_rows, own_heads] = True
    assert torch.equal(out.isnan().all(-1), expected)
    assert torch.equal(out.isnan().any(-1), expected)
    if field != "value":
        assert torch.equal(lse.isnan(), expected.transpose(1, 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_canary_in_a_query_without_keys_reaches_no_gradient(dtype):
    """Its own row of dO and Q meets probabilities of exactly 0."""
    problem = make(SHAPE, dtype, Mask(left=1000, right=-3))
    poisoned = replace(
        problem,
        query=poison(problem.query, slice(0, 3), math.nan),
        grad_out=poison(problem.grad_out, slice(0, 3), math.nan),
    )
    clean, mine = library.run(problem), library.run(poisoned)
    for name in ("out", "lse", "grad_query", "grad_key", "grad_value"):
        assert torch.equal(getattr(mine, name), getattr(clean, name)), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 5, 16, 17, 40])
@pytest.mark.parametrize("keys", [20, 90])
def test_allowed_infinity_in_a_value_stays_one(keys, queries, dtype):
    problem = make(Shape(Mq=queries, Mkv=keys, K=16, Kv=16), dtype, Mask())
    value = problem.value.clone()
    value[:, 3, :, 5] = math.inf
    out, _ = library.forward(replace(problem, value=value))
    assert torch.all(out[..., 5].isposinf())
    assert torch.all(out[..., :5].isfinite())
