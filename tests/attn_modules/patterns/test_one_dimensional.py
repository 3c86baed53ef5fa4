"""Patterns over a sequence against their sentences, token by token."""

import pytest
import torch

from attn_modules.patterns import (
    causal_1d_pattern,
    dilated_1d_pattern,
    global_token_pattern,
    local_1d_pattern,
)


def tokens(count, keeps):
    return torch.tensor([[keeps(i, j) for j in range(count)] for i in range(count)])


@pytest.mark.parametrize("window_size", [1, 3, 7, 11, 61])
@pytest.mark.parametrize("attn_size", [1, 20, 31])
def test_local(attn_size, window_size):
    half = window_size // 2
    expected = tokens(attn_size, lambda i, j: i - half <= j <= i + half)
    assert torch.equal(local_1d_pattern(attn_size, window_size), expected)


@pytest.mark.parametrize(("window_size", "dilation"), [(1, 2), (3, 4), (7, 3)])
def test_dilated(window_size, dilation):
    half = window_size // 2
    steps = [n * dilation for n in range(-half, half + 1)]
    expected = tokens(20, lambda i, j: j - i in steps)
    assert torch.equal(dilated_1d_pattern(20, window_size, dilation), expected)


def test_causal():
    assert torch.equal(causal_1d_pattern(5), tokens(5, lambda i, j: j <= i))


def test_global_tokens():
    chosen = [False, True, False, False, True]
    expected = tokens(5, lambda i, j: chosen[i] or chosen[j])
    assert torch.equal(global_token_pattern(torch.tensor(chosen)), expected)


def test_other_arguments_are_refused():
    with pytest.raises(ValueError, match="odd window_size"):
        local_1d_pattern(8, 4)
    with pytest.raises(ValueError, match="dilation of 1 or more"):
        dilated_1d_pattern(8, 3, 0)
    with pytest.raises(ValueError, match="a bool tensor"):
        global_token_pattern(torch.ones(4))
    with pytest.raises(ValueError, match="a bool tensor"):
        global_token_pattern(torch.ones(4, 1, dtype=torch.bool))
