"""Random attention: exact over the keys that are drawn, and what is drawn."""

import math

import pytest
import torch

from attn_modules import RandomAttention
from masked_modules import LENGTH, MASKS, PADDING, assert_attends, make_inputs


def drawn(attention, length):
    """Return the pattern, bool [length, length]."""
    return attention.block_mask(length, length).materialize((length, length)) == 0


@pytest.mark.parametrize(("r", "block_size"), [(0.3, 1), (0.5, 4), (1.0, 1), (0.01, 1)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
def test_output_and_gradients(r, block_size, causal, mask, padding):
    attention = RandomAttention(0.0, causal, r, block_size=block_size, seed=4)
    keep = drawn(attention, LENGTH)
    assert_attends(attention, keep, MASKS[mask], padding)
    is_told_apart = mask in ("none", "bool", "additive")
    assert_attends(attention, keep, MASKS[mask], padding, is_folded=is_told_apart)


@pytest.mark.parametrize("r", [0.5, 1.0])
@pytest.mark.parametrize("length", [0, 1, 3])
def test_short_inputs(length, r):
    attention = RandomAttention(0.0, r=r, block_size=2, seed=0)
    keep = drawn(attention, length)
    assert_attends(attention, keep)
    assert_attends(attention, keep, torch.randn(length, length))


@pytest.mark.parametrize("r", [1e-17, 1e-19, 5e-324])
def test_next_to_no_probability_draws_nothing(r):
    assert not drawn(RandomAttention(0.0, r=r, seed=1), 200).any()


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("r", [0.003, 0.05, 0.5, 0.97])
def test_each_pair_is_drawn_with_probability_r(r, seed):
    length = 512
    pattern = drawn(RandomAttention(0.0, r=r, seed=seed), length).double()
    for part in (pattern, pattern[:, :64], pattern[:, -64:], pattern[:64], pattern[-64:]):
        assert abs(part.mean() - r) < 4.5 * math.sqrt(r * (1 - r) / part.numel())
    # Rows and columns are binomial: their counts vary as those of independent draws do.
    for axis in (0, 1):
        variance = pattern.sum(axis).var() / (length * r * (1 - r))
        assert abs(variance - 1) < 5 * math.sqrt((2 + 1 / (length * r)) / length)
    # Neighbours know nothing of each other.
    for apart in (pattern[1:] * pattern[:-1], pattern[:, 1:] * pattern[:, :-1]):
        assert abs(apart.mean() - r * r) < 5 * r * math.sqrt((1 + 2 * r) / apart.numel())


def test_other_seeds_draw_others():
    patterns = [drawn(RandomAttention(0.0, r=0.1, seed=seed), 256) for seed in range(4)]
    for first in range(4):
        for second in range(first):
            overlap = (patterns[first] & patterns[second]).double().mean()
            assert 0.005 < overlap < 0.015


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block_size", [1, 8])
def test_longer_inputs_extend_the_pattern(causal, block_size):
    attention = RandomAttention(0.0, causal, r=0.1, block_size=block_size)
    longest = drawn(attention, 200)
    for length in (1, 7, 64, 130):
        assert torch.equal(drawn(attention, length), longest[:length, :length])
    free = RandomAttention(0.0, r=0.1, block_size=block_size, seed=int(attention.seed))
    assert not causal or torch.equal(longest, drawn(free, 200).tril())


def test_blocks_are_drawn_whole():
    pattern = drawn(RandomAttention(0.0, r=0.3, block_size=8, seed=1), 64)
    blocks = pattern.unflatten(0, (8, 8)).unflatten(2, (8, 8))
    assert torch.equal(blocks.any(3).any(1), blocks.all(3).all(1))
    assert 8 < blocks[:, 0, :, 0].sum() < 32


def test_the_pattern_is_constant_and_its_own():
    torch.manual_seed(7)
    first, second = RandomAttention(0.0, r=0.3), RandomAttention(0.0, r=0.3)
    inputs = make_inputs()
    out = first(*inputs)
    assert torch.equal(first(*inputs), out)
    assert not torch.equal(second(*inputs), out)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(*inputs), out)
    torch.manual_seed(7)
    assert torch.equal(RandomAttention(0.0, r=0.3)(*inputs), out)


def test_the_constant_pattern_is_drawn_once_for_a_length_and_seed():
    attention = RandomAttention(0.0, r=0.3, seed=3)
    first = attention.block_mask(16, 16)
    assert attention.block_mask(16, 16) is first
    assert torch.equal(drawn(attention, 9), drawn(attention, 16)[:9, :9])
    attention.load_state_dict(RandomAttention(0.0, r=0.3, seed=4).state_dict())
    other = drawn(RandomAttention(0.0, r=0.3, seed=4), 16)
    assert torch.equal(drawn(attention, 16), other)
    attention.seed = torch.tensor(3)
    assert torch.equal(attention.block_mask(16, 16).indices, first.indices)


def test_a_pattern_drawn_in_inference_mode_can_be_trained_with():
    attention = RandomAttention(0.0, r=0.3)
    inputs = make_inputs(requires_grad=True)
    with torch.inference_mode():
        expected = attention(*inputs)
    out = attention(*inputs)
    out.sum().backward()
    assert torch.equal(out, expected)


def test_a_pattern_that_is_not_constant_is_redrawn_in_training_alone():
    attention = RandomAttention(0.0, r=0.3, constant_masking=False, seed=3)
    inputs = make_inputs()
    torch.manual_seed(0)
    first, second = attention(*inputs), attention(*inputs)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(attention(*inputs), first)
    constant = RandomAttention(0.0, r=0.3, seed=3)
    assert torch.equal(attention.eval()(*inputs), constant(*inputs))


def test_checkpointing_repeats_the_pattern():
    attention = RandomAttention(0.0, r=0.3, constant_masking=False)
    inputs = make_inputs(requires_grad=True)
    results = []
    for call in (attention, torch.utils.checkpoint.checkpoint):
        torch.manual_seed(1)
        options = {} if call is attention else {"use_reentrant": False}
        arguments = inputs if call is attention else [attention, *inputs]
        results.append(torch.autograd.grad(call(*arguments, **options).sum(), inputs))
    for plain, repeated in zip(*results, strict=True):
        assert torch.equal(plain, repeated)


@pytest.mark.parametrize("content", [torch.nan, torch.inf, 1e30, 3.0])
def test_the_future_changes_nothing(content):
    attention = RandomAttention(0.0, causal=True, r=0.4, seed=2)
    inputs = make_inputs()
    expected = attention(*inputs)
    for now in (1, 7, LENGTH - 1):
        changed = [x.clone() for x in inputs]
        for x in changed:
            x[:, :, now:] = content
        assert torch.equal(attention(*changed)[:, :, :now], expected[:, :, :now])


def test_the_lists_grow_with_what_is_drawn():
    mask = RandomAttention(0.0, r=0.002).block_mask(8192, 8192)
    assert mask.indices.numel() < 70 * 8192
    assert RandomAttention(0.0, r=1.0).block_mask(8192, 8192).indices.numel() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"r": 0.0}, r"probability in \(0, 1\], got 0.0"),
        ({"r": 1.1}, r"probability in \(0, 1\], got 1.1"),
        ({"block_size": 0}, "block_size, an int of 1 or more, got 0"),
        ({"seed": -1}, "seed of 0 to 2\\^32 - 1, got -1"),
        ({"seed": 2**32}, "got 4294967296"),
    ],
    ids=["r-0", "r-large", "block-0", "seed-negative", "seed-large"],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomAttention(0.0, **arguments)
