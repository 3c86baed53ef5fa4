"""Rotary embeddings against rotations of the plane."""

import pytest
import torch
from torch.testing import assert_close

from attn_modules import RotaryEmbedding
from reference.modules.rotary import turn


def drawn(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("base", [10000.0, 100.0])
def test_rows_turn_by_their_positions(base):
    q, k = drawn(2, 3, 5, 8), drawn(2, 3, 9, 8)
    turned = RotaryEmbedding(8, base=base)(q, k)
    assert_close(turned, (turn(q, base), turn(k, base)))


def test_gradients_turn_back():
    q = drawn(2, 5, 4).requires_grad_()
    weight = drawn(2, 5, 4)
    turned, _ = RotaryEmbedding(4)(q, q)
    (ours,) = torch.autograd.grad(turned, q, weight)
    (expected,) = torch.autograd.grad(turn(q), q, weight)
    assert_close(ours, expected)


def test_scores_depend_on_distances_alone():
    rotary = RotaryEmbedding(8)
    q, k = (drawn(1, 8).expand(30, 8) for _ in range(2))
    q, k = rotary(q, k)
    scores = q @ k.T
    assert_close(scores[20:, 20:], scores[:10, :10])
    assert not torch.allclose(scores[0], scores[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_dtypes_turn_by_precise_angles(dtype):
    x = drawn(4000, 8).to(dtype)
    turned, _ = RotaryEmbedding(8).to(dtype)(x, x)
    assert turned.dtype == dtype
    precise, _ = RotaryEmbedding(8)(x.double(), x.double())
    assert_close(turned.double(), precise, rtol=0.01, atol=0.005)


def test_autocast_changes_nothing():
    x = drawn(3000, 8, dtype=torch.float32)
    rotary = RotaryEmbedding(8)
    with torch.autocast("cpu", torch.bfloat16):
        turned = rotary(x, x)
    assert all(map(torch.equal, turned, rotary(x, x)))


def test_frequencies_of_xformers_checkpoints_are_accepted():
    rotary = RotaryEmbedding(8)
    assert not rotary.state_dict()
    layer = torch.nn.ModuleDict({"rotary_embeddings": rotary})
    layer.load_state_dict({"rotary_embeddings.inv_freq": torch.ones(4)})


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="the even width of a head, got 7"):
        RotaryEmbedding(7)
    with pytest.raises(ValueError, match=r"expected inputs \[..., M, 8\], got \[5, 6\]"):
        RotaryEmbedding(8)(drawn(5, 8), drawn(5, 6))
