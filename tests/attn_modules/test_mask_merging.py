"""Merging attention masks with key padding where heads are folded into the batch."""

import pytest
import torch

from attn_modules import (
    AttentionMask,
    bool_mask_to_additive,
    maybe_merge_masks,
    reshape_key_padding_mask,
)

B, H, MQ, MKV = 2, 3, 4, 5
PADDING = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)


def expected(att_mask_of):
    """Fold what att_mask_of(b, h) [Mq, Mkv] keeps, head by head within a batch element."""
    return torch.stack([att_mask_of(b, h) & PADDING[b] for b in range(B) for h in range(H)])


def test_padding_alone_is_repeated_head_by_head():
    merged = maybe_merge_masks(None, PADDING, B, MKV, H, MQ)
    assert torch.equal(merged, expected(lambda _b, _h: torch.ones(MQ, MKV, dtype=torch.bool)))
    assert torch.equal(reshape_key_padding_mask(PADDING, B * H), merged[:, :1])


def test_masks_of_every_batch_shape_meet_their_batch_element():
    shared, by_batch, by_head = (torch.rand(*n, MQ, MKV) > 0.4 for n in ((), (B,), (B * H,)))
    for mask, of in (
        (shared, lambda _b, _h: shared),
        (by_batch, lambda b, _h: by_batch[b]),
        (by_head, lambda b, h: by_head[b * H + h]),
    ):
        assert torch.equal(maybe_merge_masks(mask, PADDING, B, MKV, H, MQ), expected(of))
        additive = maybe_merge_masks(bool_mask_to_additive(mask), PADDING, B, MKV, H, MQ)
        assert torch.equal(additive == 0, expected(of))


def test_without_padding_the_mask_comes_back():
    mask = torch.randn(MQ, MKV)
    assert maybe_merge_masks(mask, None, B, MKV, H, MQ) is mask
    assert maybe_merge_masks(None, None, B, MKV, H) is None


def test_wrong_shapes_and_dtypes_are_refused():
    with pytest.raises(ValueError, match="expected key_padding_mask, bool"):
        maybe_merge_masks(None, PADDING.T, B, MKV, H)
    with pytest.raises(ValueError, match="expected key_padding_mask, bool"):
        maybe_merge_masks(None, PADDING.float(), B, MKV, H)
    with pytest.raises(ValueError, match="expected att_mask"):
        maybe_merge_masks(torch.zeros(4, MQ, MKV), PADDING, B, MKV, H, MQ)
    with pytest.raises(ValueError, match="whose B divides"):
        reshape_key_padding_mask(PADDING, 5)
    with pytest.raises(ValueError, match="expected a bool tensor"):
        bool_mask_to_additive(torch.zeros(2))


def test_masks_of_other_kinds_are_refused():
    kept = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"bool or floating-point, got torch\.int64"):
        maybe_merge_masks(torch.ones(3, 3, dtype=torch.int64), kept, 2, 3, 1)
    with pytest.raises(TypeError, match="a tensor, got a AttentionMask"):
        maybe_merge_masks(AttentionMask.make_causal(3), kept, 2, 3, 1)
