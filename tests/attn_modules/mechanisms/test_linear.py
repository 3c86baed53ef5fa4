"""Linear attention against its definition, with its recurrent form."""

import functools
import math

import pytest
import torch
from torch.testing import assert_close

from attn_modules import LinearAttention
from reference.modules.kernel_attention import elu_features, kernel_attention

FEATURES = {
    "elu": elu_features,
    "relu": lambda x: torch.where(x > 0, x, 0) + 1e-3,
    "exp": torch.exp,
}
of_each_map = pytest.mark.parametrize("feature_map", FEATURES)
causal_or_not = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])


def qkv(queries, keys, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, queries, 6), (2, keys, 6), (2, keys, 5)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(("queries", "keys"), [(19, 19), (3, 7), (9, 5), (70, 70)])
@causal_or_not
@of_each_map
def test_output_and_gradients(feature_map, causal, queries, keys, padded):
    operands = [x.requires_grad_() for x in qkv(queries, keys)]
    keep = None
    if padded:
        keep = torch.rand(2, keys, generator=torch.Generator().manual_seed(1)) > 0.4
        keep[0, :3] = False
    reference = functools.partial(kernel_attention, features=FEATURES[feature_map], causal=causal)
    expected = torch.stack(
        [
            reference(*(x[b] for x in operands), keep=None if keep is None else keep[b])
            for b in range(2)
        ]
    )
    out = LinearAttention(causal=causal, feature_map=feature_map)(*operands, key_padding_mask=keep)
    assert_close(out, expected)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    ours, theirs = (torch.autograd.grad(y, operands, weight) for y in (out, expected))
    assert_close(ours, theirs)


@of_each_map
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3.0])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["q", "k", "v"])
def test_no_row_knows_later_ones(which, bad, feature_map):
    attention = LinearAttention(causal=True, feature_map=feature_map)
    operands = qkv(200, 200, torch.float32)
    before = attention(*operands)
    operands[which][..., 100:, :] = bad
    after = attention(*operands)
    assert torch.equal(after[..., :100, :], before[..., :100, :])
    assert not torch.equal(after[..., 100:, :], before[..., 100:, :])


@of_each_map
def test_steps_do_as_the_whole(feature_map):
    attention = LinearAttention(causal=True, feature_map=feature_map)
    q, k, v = qkv(70, 70)
    whole = attention(q, k, v)
    out, state = attention.prefill(q[:, :65], k[:, :65], v[:, :65])
    assert_close(out, whole[:, :65])
    for i in range(65, 70):
        out, state = attention.step(*(x[:, i : i + 1] for x in (q, k, v)), state)
        assert_close(out, whole[:, i : i + 1])


@causal_or_not
def test_sums_over_many_long_rows_do_not_overflow(causal):
    x = torch.full((1, 1, 4096, 64), 50.0, requires_grad=True)
    v = torch.full((1, 1, 4096, 2), 1e4, requires_grad=True)
    out = LinearAttention(causal=causal, feature_map="exp")(x, x, v)
    assert_close(out, v, rtol=1e-5, atol=0.0)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), (x, v)))


@pytest.mark.parametrize("level", [-3.0, -16.0, -20.0, -24.0])
def test_elu_of_negative_rows_does_not_cancel(level):
    q, k, v = qkv(9, 9)
    operands = [q + level, k + level, v]
    narrow = [x.float().requires_grad_() for x in operands]
    wide = [x.requires_grad_() for x in operands]
    attention = LinearAttention()
    out, expected = attention(*narrow), attention(*wide)
    assert_close(expected[0], kernel_attention(*(x[0] for x in wide), elu_features))
    assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    ours, theirs = (torch.autograd.grad(y.sum(), x) for y, x in ((out, narrow), (expected, wide)))
    for x, y in zip(ours, theirs, strict=True):
        assert_close(x.double(), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", [-200.0, 200.0])
@of_each_map
def test_steps_of_far_rows_are_finite(feature_map, level):
    attention = LinearAttention(causal=True, feature_map=feature_map)
    q = k = torch.full((1, 3, 4), level)
    v = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1)
    expected, state = torch.tensor([1.0, 1.5, 2.0]).view(1, 3, 1), None
    assert_close(attention(q, k, v), expected)
    for i in range(3):
        out, state = attention.step(*(x[:, i : i + 1] for x in (q, k, v)), state)
        assert_close(out, expected[:, i : i + 1])


def test_other_feature_maps_are_refused():
    with pytest.raises(ValueError, match="one of elu, relu, exp, got 'tanh'"):
        LinearAttention(feature_map="tanh")
