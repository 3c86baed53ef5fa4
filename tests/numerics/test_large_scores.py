"""Scores so large that float32 rounds them by more than what softmax tells apart."""

import pytest
import torch

from numerics import library
from numerics.cases import DTYPES
from reference.problem import Mask, Problem


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e5, 2e8, 3e8, 1e12])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("Mkv", [63, 64, 640])
@pytest.mark.parametrize("Mq", [1, 40])
def test_the_largest_score_takes_all(Mq, Mkv, sign, scale, dtype):
    key = (torch.arange(Mkv) % 64 + 1).view(1, Mkv, 1, 1).to(dtype)  # scores sign * scale * key
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
    largest = (sign * key).max().item()
    chosen = sign * key == largest
    assert (results.out == abs(largest)).all()
    lse = torch.full((1, 1, Mq), largest * scale + chosen.sum().log().item(), dtype=torch.float64)
    torch.testing.assert_close(results.lse.double(), lse, rtol=1e-6, atol=0)
    share = (chosen * Mq / chosen.sum()).to(dtype)
    torch.testing.assert_close(results.grad_value, share)
    assert results.grad_query.eq(0).all()
