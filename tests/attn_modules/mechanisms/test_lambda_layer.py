"""Lambda layers against their maps, made one by one."""

import pytest
import torch
from torch.testing import assert_close

from attn_modules import LambdaLayer
from reference.modules.lambda_layer import apply_lambdas


def qkv(queries, keys, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, 3, queries, 4), (2, 3, keys, 4), (2, 3, keys, 5)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]


def layer(seq_len):
    torch.manual_seed(0)
    return LambdaLayer(seq_len, 4).double()


# 64 queries are applied at once: lengths on both sides of it.
@pytest.mark.parametrize(
    ("queries", "keys", "seq_len"),
    [
        (1, 1, 1),
        (1, 1, 3),
        (6, 6, 6),
        (5, 5, 9),
        (64, 64, 64),
        (70, 70, 70),
        (65, 3, 65),
        (3, 70, 80),
    ],
)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
def test_output_and_gradients(queries, keys, seq_len, masked):
    attention, inputs = layer(seq_len), qkv(queries, keys)
    keep = torch.rand(2, keys, generator=torch.Generator().manual_seed(1)) < 0.6 if masked else None
    if masked:
        keep[:, 0] = True
    expected = apply_lambdas(
        *inputs, attention.rel_pos_emb, seq_len, keep[:, None] if masked else None
    )
    out = attention(*inputs, key_padding_mask=keep)
    assert_close(out, expected)
    inputs.append(attention.rel_pos_emb)
    weight = torch.randn(out.shape, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(y, inputs, weight) for y in (out, expected))
    assert_close(ours, theirs)


def test_gradients_of_gradients():
    attention, inputs = layer(4), qkv(3, 4)
    assert torch.autograd.gradgradcheck(lambda *x: attention(*x).square(), inputs)


def test_a_key_is_weighed_against_the_context():
    attention = layer(4)
    with torch.no_grad():
        attention.rel_pos_emb.zero_()
    q, k, v = qkv(4, 4)
    k = torch.zeros_like(k)
    expected = q.sum(-1, keepdim=True) * v.mean(2, keepdim=True)
    assert_close(attention(q, k, v), expected)


def test_only_padding_gives_nothing():
    inputs = qkv(5, 5)
    keep = torch.ones(2, 5, dtype=torch.bool)
    keep[1] = False
    out = layer(5)(*inputs, key_padding_mask=keep)
    assert not out[1].any()
    for gradient in torch.autograd.grad(out.sum(), inputs):
        assert gradient.isfinite().all()
        assert not gradient[1].any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at most seq_len=5 rows, got"):
        layer(5)(*qkv(6, 5))
    with pytest.raises(ValueError, match="at most seq_len=5 rows, got"):
        layer(5)(*qkv(5, 6))
    with pytest.raises(ValueError, match="width dim_head=3"):
        LambdaLayer(5, 3)(*qkv(5, 5))
    with pytest.raises(ValueError, match="expected seq_len, an int of 1 or more"):
        LambdaLayer(0, 3)
