"""Bands around the diagonal: what they let each query see, and how they are built."""

import pytest
import torch

from attn_ops.fmha.attn_bias import (
    LocalAttentionFromBottomRightMask,
    LowerTriangularFromBottomRightLocalAttentionMask,
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
    LowerTriangularMaskWithTensorBias,
)
from reference import mask_formulas as formulas

LENGTHS = [(1, 1), (1, 5), (5, 1), (4, 4), (3, 7), (7, 3), (0, 3), (3, 0)]


@pytest.mark.parametrize(("mq", "mkv"), LENGTHS)
def test_lower_triangular_starts_at_the_first_key(mq, mkv):
    expected = formulas.dense(formulas.causal, mq, mkv)
    assert torch.equal(LowerTriangularMask().materialize((mq, mkv)), expected)


@pytest.mark.parametrize(("mq", "mkv"), LENGTHS)
def test_from_bottom_right_ends_at_the_last_key(mq, mkv):
    expected = formulas.dense(formulas.causal_from_bottom_right, mq, mkv)
    assert torch.equal(LowerTriangularFromBottomRightMask().materialize((mq, mkv)), expected)


@pytest.mark.parametrize(("mq", "mkv"), LENGTHS)
@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_window_keeps_so_many_keys_with_the_diagonal(mq, mkv, window):
    mask = LowerTriangularFromBottomRightMask().make_local_attention(window)
    expected = formulas.dense(formulas.causal_window_from_bottom_right(window), mq, mkv)
    assert torch.equal(mask.materialize((mq, mkv)), expected)
    if mq and mkv >= window:
        assert (expected[-1] == 0).sum() == window


@pytest.mark.parametrize(("mq", "mkv"), LENGTHS)
@pytest.mark.parametrize(("left", "right"), [(0, 0), (1, 2), (3, 0), (0, 4), (50, 50)])
def test_local_attention_looks_both_ways(mq, mkv, left, right):
    mask = LocalAttentionFromBottomRightMask(window_left=left, window_right=right)
    expected = formulas.dense(formulas.window_from_bottom_right(left, right), mq, mkv)
    assert torch.equal(mask.materialize((mq, mkv)), expected)


def test_local_mask_is_a_from_bottom_right_mask():
    mask = LowerTriangularFromBottomRightMask().make_local_attention(3)
    assert isinstance(mask, LowerTriangularFromBottomRightMask)
    assert mask == LowerTriangularFromBottomRightLocalAttentionMask(_window_size=3)
    assert mask.make_local_attention(2) == LowerTriangularFromBottomRightLocalAttentionMask(2)


@pytest.mark.parametrize("window", [0, -1])
def test_window_must_be_positive(window):
    with pytest.raises(ValueError, match="expected window_size in"):
        LowerTriangularFromBottomRightMask().make_local_attention(window)


def test_window_must_be_an_int():
    with pytest.raises(TypeError, match=r"expected an int as window_size, got 1\.5"):
        LowerTriangularFromBottomRightMask().make_local_attention(1.5)


@pytest.mark.parametrize(("left", "right"), [(-1, 0), (0, -1)])
def test_local_windows_are_not_negative(left, right):
    with pytest.raises(ValueError, match="of 0 or more, got -1"):
        LocalAttentionFromBottomRightMask(left, right)


def test_masks_compare_by_meaning_and_serve_every_device():
    for mask in (
        LowerTriangularMask(),
        LowerTriangularFromBottomRightMask(),
        LocalAttentionFromBottomRightMask(1, 2),
    ):
        assert mask.to("meta") == mask
        assert not mask.HOLDS_DENSE_TENSOR
    assert LowerTriangularMask(device="cpu") == LowerTriangularMask(_subtensor=None)
    assert LowerTriangularMask() != LowerTriangularFromBottomRightMask()


def test_tensor_bias_is_added_to_the_keys_that_are_seen():
    tensor = torch.randn(2, 3, 4, 5)
    mask = LowerTriangularMask().add_bias(tensor)
    assert type(mask) is LowerTriangularMaskWithTensorBias
    assert isinstance(mask, LowerTriangularMask)
    assert mask.HOLDS_DENSE_TENSOR
    assert mask._bias is tensor
    expected = tensor + formulas.dense(formulas.causal, 4, 5)
    assert torch.equal(mask.materialize((2, 3, 4, 5)), expected)


def test_tensor_bias_moves_with_its_mask():
    mask = LowerTriangularMaskWithTensorBias(torch.randn(1, 1, 2, 2)).to("meta")
    assert type(mask) is LowerTriangularMaskWithTensorBias
    assert mask._bias.device.type == "meta"


def test_tensor_bias_must_be_a_tensor():
    with pytest.raises(TypeError, match="expected a tensor, got <class 'float'>"):
        LowerTriangularMaskWithTensorBias(1.0)
