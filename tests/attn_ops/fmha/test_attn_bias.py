"""The mask classes: what they let each query see, and how they are built."""

import pytest
import torch

from attn_ops import fmha
from attn_ops.fmha.attn_bias import (
    AttentionBias,
    LowerTriangularFromBottomRightLocalAttentionMask,
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
)

LENGTHS = [(1, 1), (1, 5), (5, 1), (4, 4), (3, 7), (7, 3), (0, 3), (3, 0)]


def materialized(sees, num_queries, num_keys):
    rows = [
        [0.0 if sees(i, j) else -torch.inf for j in range(num_keys)] for i in range(num_queries)
    ]
    return torch.tensor(rows).reshape(num_queries, num_keys)


@pytest.mark.parametrize(("mq", "mkv"), LENGTHS)
def test_lower_triangular_starts_at_the_first_key(mq, mkv):
    expected = materialized(lambda i, j: j <= i, mq, mkv)
    assert torch.equal(LowerTriangularMask().materialize((mq, mkv)), expected)


@pytest.mark.parametrize(("mq", "mkv"), LENGTHS)
def test_from_bottom_right_ends_at_the_last_key(mq, mkv):
    expected = materialized(lambda i, j: j <= i + mkv - mq, mq, mkv)
    assert torch.equal(LowerTriangularFromBottomRightMask().materialize((mq, mkv)), expected)


@pytest.mark.parametrize(("mq", "mkv"), LENGTHS)
@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_window_keeps_so_many_keys_with_the_diagonal(mq, mkv, window):
    mask = LowerTriangularFromBottomRightMask().make_local_attention(window)
    shift = mkv - mq
    expected = materialized(lambda i, j: i + shift - window < j <= i + shift, mq, mkv)
    assert torch.equal(mask.materialize((mq, mkv)), expected)
    if mq and mkv >= window:
        assert (expected[-1] == 0).sum() == window


def test_local_mask_is_a_from_bottom_right_mask():
    mask = LowerTriangularFromBottomRightMask().make_local_attention(3)
    assert isinstance(mask, LowerTriangularFromBottomRightMask)
    assert mask == LowerTriangularFromBottomRightLocalAttentionMask(_window_size=3)
    assert mask.make_local_attention(2) == LowerTriangularFromBottomRightLocalAttentionMask(2)


@pytest.mark.parametrize("window", [0, -1])
def test_window_must_be_positive(window):
    with pytest.raises(ValueError, match="expected window_size in"):
        LowerTriangularFromBottomRightMask().make_local_attention(window)


def test_materialize_expands_and_casts():
    mask = LowerTriangularMask().materialize((2, 3, 4, 5), dtype=torch.bfloat16, device="meta")
    assert mask.shape == (2, 3, 4, 5)
    assert mask.stride()[:2] == (0, 0)
    assert mask.dtype == torch.bfloat16
    assert mask.device.type == "meta"


def test_materialize_needs_two_axes():
    with pytest.raises(ValueError, match=r"shape \[..., Mq, Mkv\]"):
        LowerTriangularMask().materialize((3,))


def test_masks_move_and_compare_by_meaning():
    for mask in (LowerTriangularMask(), LowerTriangularFromBottomRightMask()):
        assert isinstance(mask, AttentionBias)
        assert mask.to("cpu") == mask
    assert LowerTriangularMask() == LowerTriangularMask()
    assert LowerTriangularMask() != LowerTriangularFromBottomRightMask()


def test_base_class_refuses():
    with pytest.raises(NotImplementedError, match="AttentionBias does not say"):
        AttentionBias().materialize((2, 2))


def test_names_are_those_of_xformers():
    assert fmha.LowerTriangularMask is fmha.attn_bias.LowerTriangularMask
    assert fmha.memory_efficient_attention.__module__.startswith("attn_ops")
