"""Scaled dot-product attention against its formula."""

import pytest
import torch

from attn_modules import AttentionMask, ScaledDotProduct
from reference.modules.dense_attention import attend


def qkv(queries=6, keys=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 5)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (3, 7), (7, 3)])
def test_output_and_gradients(causal, queries, keys):
    inputs = qkv(queries, keys)
    keep = AttentionMask.make_causal(queries, keys).to_bool()[0] if causal else None
    weight = torch.randn(2, 3, queries, 5, dtype=torch.float64)
    ours, expected = ScaledDotProduct(causal=causal)(*inputs), attend(*inputs, keep)
    torch.testing.assert_close(ours, expected)
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs, weight),
        torch.autograd.grad(expected, inputs, weight),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_causal_mask_joins_the_callers():
    inputs = qkv(5, 5)
    bias = torch.randn(7, 7, dtype=torch.float64)
    expected = attend(*inputs, torch.ones(5, 5).tril().bool(), bias[:5, :5])
    out = ScaledDotProduct(causal=True, seq_len=9)(*inputs, att_mask=bias)
    torch.testing.assert_close(out, expected)


def test_mask_is_made_for_seq_len():
    assert ScaledDotProduct(causal=True).mask is None
    assert ScaledDotProduct(seq_len=4).mask is None
    mask = ScaledDotProduct(causal=True, seq_len=3, to_seq_len=4).mask
    assert torch.equal(mask.values, AttentionMask.make_causal(3, 4).values)


def test_inputs_longer_than_seq_len_are_refused():
    with pytest.raises(ValueError, match="at most seq_len=4 queries and to_seq_len=4 keys"):
        ScaledDotProduct(causal=True, seq_len=4)(*qkv())
    with pytest.raises(ValueError, match="seq_len together with to_seq_len"):
        ScaledDotProduct(to_seq_len=4)


def test_dropout_drops_probabilities_in_training_alone():
    q, k, _ = (x.detach() for x in qkv(64, 64))
    v = torch.eye(64, dtype=torch.float64).expand(2, 3, 64, 64)  # the output is the weights
    attention = ScaledDotProduct(dropout=0.25)
    torch.manual_seed(0)
    dropped = attention(q, k, v)
    weights = attention.eval()(q, k, v)
    assert 0.2 < (dropped == 0).double().mean() < 0.3
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], (weights / 0.75)[kept])
