"""The reference against autograd in float64, and against cases that can be worked out by hand."""

import numpy as np
import pytest
import torch

from reference import attention, eager, philox
from reference.problem import Mask, Problem

B, MQ, MKV, HQ, HKV, K, KV = 2, 7, 9, 4, 2, 5, 3


def make_problem(mask: Mask) -> Problem:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return Problem(
        query=normal(B, MQ, HQ, K),
        key=normal(B, MKV, HKV, K),
        value=normal(B, MKV, HKV, KV),
        mask=mask,
        scale=0.7,
        grad_out=normal(B, MQ, HQ, KV),
        grad_lse=normal(B, HQ, MQ),
    )


@pytest.mark.parametrize(
    "mask",
    [
        Mask(),
        Mask(right=0),
        Mask(left=2, right=1, anchor="bottom_right"),
        Mask(right=-3),
        Mask(bias=torch.linspace(-1, 1, HQ * MKV, dtype=torch.float64).view(1, HQ, 1, MKV)),
        Mask(bias=(torch.arange(MKV) < 6).view(1, 1, 1, MKV)),
        Mask(dropout_p=0.4, dropout_seed=5, dropout_offset=2**40),
    ],
    ids=["none", "causal", "window", "rows_without_keys", "bias", "keep", "dropout"],
)
def test_written_gradients_are_autograds(mask):
    problem = make_problem(mask)
    written, automatic = attention.attention(problem), eager.attention(problem)
    for name in ("out", "lse", "grad_query", "grad_key", "grad_value", "grad_bias"):
        torch.testing.assert_close(
            getattr(written, name), getattr(automatic, name), rtol=1e-12, atol=1e-12
        )


def test_query_without_keys_gives_zero_and_minus_infinity():
    results = attention.attention(make_problem(Mask(right=-1)))
    assert torch.all(results.out[:, 0] == 0)
    assert torch.all(results.lse[:, :, 0] == -torch.inf)
    assert torch.all(results.grad_query[:, 0] == 0)


def test_single_key_gives_its_value():
    problem = make_problem(Mask(left=0, right=0))
    results = attention.attention(problem)
    torch.testing.assert_close(results.out[:, :, 0], problem.value[:, :MQ, 0])


def test_philox_gives_the_published_vectors():
    # Random123, kat_vectors: philox 4x32, 10 rounds.
    counters = np.array([[0] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]], np.uint32)
    assert [f"{w:08x}" for w in philox.philox4x32_10(counters[0], (0, 0))] == [
        "6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8",
    ]  # fmt: skip
    assert [f"{w:08x}" for w in philox.philox4x32_10(counters[1], (0xA4093822, 0x299F31D0))] == [
        "d16cfe09", "94fdcceb", "5001e420", "24126ea1",
    ]  # fmt: skip
