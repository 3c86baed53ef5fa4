"""Scores so large that float32 rounds them by more than what softmax tells apart."""

import pytest
import torch

from attn_ops import memory_efficient_attention
from numerics import library
from numerics.cases import DTYPES
from reference.problem import Mask, Problem


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e5, 2e8, 3e8, 1e12])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("Mkv", [63, 64, 640])
@pytest.mark.parametrize("Mq", [1, 40])
def test_the_largest_score_takes_all(Mq, Mkv, sign, scale, dtype):
    key = (torch.arange(Mkv) % 59 + 5).view(1, Mkv, 1, 1).to(dtype)
    key[:, 7], key[:, 11] = 3, 65  # the least and the largest, once each
    problem = Problem(
        query=torch.full((1, Mq, 1, 1), sign, dtype=dtype),
        key=key,
        value=key,
        mask=Mask(),
        scale=scale,
        grad_out=torch.ones(1, Mq, 1, 1, dtype=dtype),
        grad_lse=torch.zeros(1, 1, Mq, dtype=torch.promote_types(dtype, torch.float32)),
    )
    results = library.run(problem)
    largest, chosen = (65, 11) if sign > 0 else (3, 7)
    assert results.out.eq(largest).all()
    lse = torch.full((1, 1, Mq), sign * largest * scale, dtype=results.lse.dtype)
    torch.testing.assert_close(results.lse, lse, rtol=1e-6, atol=0)
    assert results.grad_value[:, chosen].eq(Mq).all()
    assert results.grad_value.sum() == Mq
    assert results.grad_query.eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 8, 30])
def test_the_backward_computes_the_scores_of_the_forward(size, dtype):
    """Then the probability of the only key is 1 there too, however the products are rounded."""
    torch.manual_seed(0)
    query, key = (size * torch.randn(1, M, 2, 64).to(dtype) for M in (130, 1))
    value = torch.ones(1, 1, 2, 8, dtype=dtype, requires_grad=True)
    memory_efficient_attention(query, key, value).sum().backward()
    assert value.grad is not None
    torch.testing.assert_close(value.grad, torch.full_like(value, 130), rtol=1e-6, atol=0)
