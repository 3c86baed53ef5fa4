"""An output of another dtype than the inputs' is the same result, rounded once at the end."""

from dataclasses import replace

import pytest
import torch

from attn_ops import memory_efficient_attention
from numerics import library
from numerics.cases import Case, Shape, make_problem
from reference.error_rule import assert_accurate

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = (
    Shape(2, 37, 301, 4, 2, 24, 40),
    Shape(2, 1, 1301, 4, 2, 24, 40),
    Shape(2, 3, 301, 4, 2, 24, 40),
)


@pytest.mark.parametrize("output_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rounding_happens_once(shape, dtype, output_dtype):
    problem = make_problem(Case(shape, "causal_bottom_right", dtype))
    wide, _ = library.forward(replace(problem, grad_out=problem.grad_out.float()))
    out, _ = library.forward(replace(problem, grad_out=problem.grad_out.to(output_dtype)))
    assert out.dtype == output_dtype
    assert torch.equal(out, wide.to(output_dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_from_a_wider_output(shape, dtype):
    problem = make_problem(Case(shape, "causal_bottom_right", dtype))
    problem = replace(problem, grad_out=problem.grad_out.float())
    assert_accurate(library.run(problem), problem)


def test_a_wide_output_of_narrow_inputs_leans_to_no_side():
    torch.manual_seed(0)
    query, key = (torch.randn(1, M, 2, 64, dtype=torch.float16) for M in (100, 3000))
    value = 1 + torch.rand(1, 3000, 2, 64).half()
    out = memory_efficient_attention(query, key, value, output_dtype=torch.float32)
    q, k, v = (x.double().transpose(1, 2) for x in (query, key, value))
    exact = ((q @ k.mT / 8).softmax(-1) @ v).transpose(1, 2)
    assert (out.double() - exact).mean().abs() < 4e-6


@pytest.mark.parametrize("queries", [1, 4, 5, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decoding_does_not_round_probabilities_to_the_inputs_dtype(queries, dtype):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, M, 2, 64).to(dtype) for M in (queries, 300, 300))
    out = memory_efficient_attention(query, key, value, output_dtype=torch.float32)
    q, k, v = (x.double().transpose(1, 2) for x in (query, key, value))
    exact = ((q @ k.mT / 8).softmax(-1) @ v).transpose(1, 2)
    assert (out.double() - exact).abs().max() < 1e-5
