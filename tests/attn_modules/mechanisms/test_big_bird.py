"""BigBird against dense attention over its blocks, with masks, padding and any length."""

import pytest
import torch

from attn_modules import BigBirdAttention, build_attention
from reference.modules import big_bird as reference
from reference.modules.dense_attention import attend

COUNTS = {"num_random_blocks": 1, "num_sliding_window_blocks": 3, "num_global_blocks": 1}


def qkv(length, heads=3):
    generator = torch.Generator().manual_seed(length)
    return [
        torch.randn(2, heads, length, width, generator=generator, dtype=torch.float64)
        for width in (8, 8, 5)
    ]


def make(heads=3, **options):
    return BigBirdAttention(block_size=4, num_heads=heads, seed=5, **COUNTS, **options)


def kept(length, heads=3, causal=False):
    rows = reference.keep(length, 4, heads, causal, window=3, num_global=1, num_random=1, seed=5)
    return torch.tensor(rows)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 3, 32, 41])
@pytest.mark.parametrize("heads", [1, 3])
def test_output_and_gradients(causal, length, heads):
    inputs = [x.requires_grad_() for x in qkv(length)]
    ours = make(heads, causal=causal)(*inputs)
    expected = attend(*inputs, kept(length, heads, causal))
    torch.testing.assert_close(ours, expected)
    weight = torch.randn_like(ours)
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs, weight),
        torch.autograd.grad(expected, inputs, weight),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_masks_and_padding():
    q, k, v = qkv(30)
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(2, 3, 30, 30, generator=generator) < 0.8
    bias = torch.randn(2, 3, 30, 30, generator=generator, dtype=torch.float64)
    padding = torch.arange(30) < torch.tensor([[30], [17]])
    seen = kept(30) & padding[:, None, None]
    k[1, :, 17:], v[1, :, 17:] = torch.nan, torch.nan
    attention = make()
    out = attention(q, k, v, keep, padding)
    torch.testing.assert_close(out, attend(q, k, v, seen & keep))
    out = attention(q, k, v, bias, padding)
    torch.testing.assert_close(out, attend(q, k, v, seen, bias))


def test_folded_heads_keep_their_patterns():
    inputs = qkv(30)
    keep = torch.rand(2, 3, 30, 30, generator=torch.Generator().manual_seed(0)) < 0.8
    folded = [x.flatten(0, 1) for x in inputs]
    attention = make()
    out = attention(*folded, keep.flatten(0, 1))
    assert torch.equal(out, attention(*inputs, keep).flatten(0, 1))
    with pytest.raises(ValueError, match=r"3 heads, which have patterns of their own"):
        attention(*(x[:4] for x in folded))
    with pytest.raises(ValueError, match=r"3 heads, which have patterns of their own"):
        attention(*(x[:, :2] for x in inputs))


def test_the_future_does_not_leak():
    q, k, v = qkv(41)
    attention = make(causal=True)
    expected = attention(q, k, v)
    for filling in (100.0, torch.nan):
        changed = [x.clone() for x in (q, k, v)]
        for x in changed:
            x[:, :, 22:] = filling
        assert torch.equal(attention(*changed)[:, :, :22], expected[:, :, :22])
    assert torch.equal(attention(*(x[:, :, :22] for x in (q, k, v))), expected[:, :, :22])


def test_the_seed_is_drawn_and_saved():
    torch.manual_seed(0)
    first, second = (BigBirdAttention(block_size=1) for _ in range(2))
    inputs = qkv(40)
    assert not torch.equal(first(*inputs), second(*inputs))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(*inputs), second(*inputs))
    torch.manual_seed(0)
    assert BigBirdAttention(block_size=1).seed == first.seed


def test_every_option_is_in_the_configuration():
    built = build_attention(
        {"name": "big_bird", "block_size": 4, "num_heads": 3, "seed": 5, "causal": True, **COUNTS}
    )
    inputs = qkv(41)
    assert torch.equal(built(*inputs), make(causal=True)(*inputs))
    assert "1 random, 3 in the window, 1 global" in repr(built)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "block_size, an int of 1 or more"),
        ({"seed": -1}, "seed of 0"),
        ({"seed": 2**32}, "seed of 0"),
        ({"num_sliding_window_blocks": 4}, "odd number"),
        ({"num_random_blocks": -2}, "0 or more"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=f"BigBirdAttention: expected .*{message}"):
        BigBirdAttention(**options)


def test_other_numbers_of_keys_are_refused():
    q, k, v = qkv(12)
    with pytest.raises(ValueError, match="as many keys as queries"):
        make()(q[:, :, :8], k, v)
