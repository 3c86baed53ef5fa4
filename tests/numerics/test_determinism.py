"""The same bits on every run, for any number of threads, and whatever else is in the batch."""

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from attn_ops import memory_efficient_attention
from attn_ops.fmha.attn_bias import LocalAttentionFromBottomRightMask
from numerics import library
from numerics.cases import DTYPES, Case, Shape, make_problem
from reference.problem import Mask, Problem, Results

SHAPES = (
    Shape(2, 150, 333, 4, 2, 40, 24),
    Shape(1, 1, 9000, 4, 1, 64, 64),  # decoding: the keys are split
    Shape(3, 2, 700, 8, 8, 16, 16),
    Shape(1, 7, 1500, 3, 3, 40, 72),  # decoding by tile registers
    Shape(1, 700, 70, 1, 1, 32, 32),
    Shape(1, 40, 600, 11, 11, 16, 16),  # more heads than a backward's blocks go together of
)
# One query each, whose short rows of keys lie side by side: they are scored together.
NEIGHBOURS = tuple(Shape(2, 1, 133, heads, heads, 32, 24) for heads in (2, 4, 6, 8, 12, 16))
MASKS = ("none", "causal_bottom_right", "all_parts", "bias_per_key", "bias_single")


def assert_same_bits(mine: Results, other: Results) -> None:
    for field in fields(Results):
        ours, theirs = getattr(mine, field.name), getattr(other, field.name)
        if ours is not None:
            assert same_bits(ours, theirs), f"{field.name} differs"


def same_bits(mine: Tensor, other: Tensor) -> bool:
    return torch.equal(mine.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_runs_and_threads(shape, mask, dtype):
    problem = make_problem(Case(shape, mask, dtype))
    first = library.run(problem, num_threads=1)
    for num_threads in (1, 2, 3, 2, 3):
        assert_same_bits(library.run(problem, num_threads=num_threads), first)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", ["none", "causal_bottom_right", "bias_per_query"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_entry_alone(shape, mask, dtype):
    problem = make_problem(Case(replace(shape, B=3), mask, dtype))
    together = library.run(problem)
    for b in range(3):
        alone = library.run(narrowed(problem, lambda x, b=b: x[b : b + 1]))
        for name in ("out", "lse", "grad_query", "grad_key", "grad_value"):
            assert same_bits(getattr(alone, name), getattr(together, name)[b : b + 1]), name


def narrowed(problem: Problem, narrow: Callable[[Tensor], Tensor]) -> Problem:
    bias = problem.mask.bias
    tensors = ("query", "key", "value", "grad_out", "grad_lse")
    return replace(
        problem,
        **{name: narrow(getattr(problem, name)) for name in tensors},
        mask=replace(problem.mask, bias=bias if bias is None else narrow(bias)),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES + NEIGHBOURS, ids=str)
def test_query_head_alone(shape, dtype):
    """With the key head it reads; so heads that share keys do not disturb each other."""
    problem = make_problem(Case(shape, "none", dtype))
    out, lse = library.forward(problem)
    for head in range(shape.Hq):
        key_head = head // problem.groups
        alone = replace(
            problem,
            query=problem.query[:, :, head : head + 1],
            key=problem.key[:, :, key_head : key_head + 1],
            value=problem.value[:, :, key_head : key_head + 1],
            grad_out=problem.grad_out[:, :, head : head + 1],
            grad_lse=problem.grad_lse[:, head : head + 1],
        )
        out_alone, lse_alone = library.forward(alone)
        assert same_bits(out_alone, out[:, :, head : head + 1])
        assert same_bits(lse_alone, lse[:, head : head + 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_grouped_heads_are_expanded_heads(shape, dtype):
    problem = make_problem(Case(shape, "causal_bottom_right", dtype))
    expanded = replace(
        problem,
        key=problem.key.repeat_interleave(problem.groups, dim=2),
        value=problem.value.repeat_interleave(problem.groups, dim=2),
    )
    (out, lse), (out_expanded, lse_expanded) = library.forward(problem), library.forward(expanded)
    assert same_bits(out, out_expanded)
    assert same_bits(lse, lse_expanded)


@pytest.mark.parametrize("dtype", DTYPES)
def test_repeated_heads_and_batches_are_read_where_they_lie(dtype):
    """Stride 0 in keys and values gives what copies of them give."""
    problem = make_problem(Case(Shape(2, 33, 65, 6, 3, 20, 20), "none", dtype))
    repeated = replace(
        problem,
        key=problem.key[:1, :, :1].expand(problem.key.shape),
        value=problem.value[:1, :, :1].expand(problem.value.shape),
    )
    copied = replace(repeated, key=repeated.key.clone(), value=repeated.value.clone())
    assert_same_bits(library.run(repeated), library.run(copied))


def test_masks_that_exclude_nothing_change_nothing():
    shape = SHAPES[0]
    problem = make_problem(Case(shape, "none", torch.float32))
    out, lse = library.forward(problem)
    for mask in (
        Mask(left=shape.Mkv + shape.Mq, right=shape.Mkv),
        Mask(bias=torch.ones(1, 1, 1, 1, dtype=torch.bool)),
        Mask(bias=torch.zeros(shape.B, shape.Hq, shape.Mq, shape.Mkv)),
    ):
        masked_out, masked_lse = library.forward(replace(problem, mask=mask))
        torch.testing.assert_close(masked_out, out, rtol=0, atol=1e-6)
        torch.testing.assert_close(masked_lse, lse, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [1, 37, 100])
@pytest.mark.parametrize("window", [(40, 50), (150, 3), (5, 300)], ids=str)
def test_a_windowed_row_has_the_bits_it_has_without_the_rows_before(window, first, dtype):
    """Wherever the keys begin that the rows beside it see."""
    torch.manual_seed(0)
    mask = LocalAttentionFromBottomRightMask(*window)
    query, key, value = (torch.randn(1, M, 1, 32).to(dtype) for M in (230, 900, 900))
    together = memory_efficient_attention(query, key, value, mask)
    assert same_bits(
        memory_efficient_attention(query[:, first:], key, value, mask), together[:, first:]
    )
