"""Keys with gaps between them: what each class lets queries see, and how it is built."""

import pytest
import torch

from attn_ops.fmha.attn_bias import (
    BlockDiagonalCausalWithOffsetGappyKeysMask,
    BlockDiagonalGappyKeysMask,
    BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask,
    PagedBlockDiagonalCausalWithOffsetGappyKeysMask,
    PagedBlockDiagonalGappyKeysMask,
)
from reference import mask_formulas as formulas

BATCHES = formulas.batches()


def starts_of(batch):
    """Return starts with gaps of 1, 2, 3, … before each sequence, and the length of the keys."""
    starts, at = [], 0
    for gap, length in enumerate(batch.kv_seqlen, start=1):
        starts.append(at + gap)
        at += gap + length
    return [*starts, at + 2]


def expected(batch, rule):
    *starts, end = starts_of(batch)
    slots = [range(at, at + n) for at, n in zip(starts, batch.kv_seqlen, strict=True)]
    return formulas.packed(rule, batch.q_seqlen, slots, end)


def materialized(mask, batch):
    return mask.materialize((batch.num_queries, starts_of(batch)[-1]))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("form", [list, torch.tensor])
@pytest.mark.parametrize(
    ("mask_type", "rule"),
    [
        (BlockDiagonalGappyKeysMask, formulas.every_key),
        (BlockDiagonalCausalWithOffsetGappyKeysMask, formulas.causal_from_bottom_right),
    ],
)
def test_queries_see_their_own_keys(batch, form, mask_type, rule):
    mask = mask_type.from_seqlens(
        form(batch.q_seqlen), form(starts_of(batch)), form(batch.kv_seqlen)
    )
    assert type(mask) is mask_type
    assert torch.equal(materialized(mask, batch), expected(batch, rule))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize(("left", "right"), [(0, 0), (1, 2), (20, 0)])
def test_windows(batch, left, right):
    mask = BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask.from_seqlens_local_gappy(
        batch.q_seqlen, starts_of(batch), batch.kv_seqlen, left, right, device="cpu"
    )
    rule = formulas.window_from_bottom_right(left, right)
    assert torch.equal(materialized(mask, batch), expected(batch, rule))


@pytest.mark.parametrize("starts", [[0, 2], [0, 2, 4, 6]])
def test_there_is_one_start_more_than_lengths(starts):
    with pytest.raises(ValueError, match="one start more than lengths"):
        BlockDiagonalGappyKeysMask.from_seqlens([1, 1], starts, [1, 1])


def test_there_must_be_a_sequence():
    with pytest.raises(ValueError, match="one sequence or more"):
        BlockDiagonalGappyKeysMask.from_seqlens([], [0], [])


def test_counts_must_match():
    with pytest.raises(AssertionError, match="as many lengths of keys as of queries"):
        BlockDiagonalGappyKeysMask.from_seqlens([1, 1, 1], [0, 2, 4], [1, 1])


@pytest.mark.parametrize(("shape", "letter"), [((2, 9), "k"), ((3, 4), "q")])
def test_materialize_refuses_other_lengths(shape, letter):
    with pytest.raises(ValueError, match=f"{letter} shapes wrong"):
        BlockDiagonalGappyKeysMask.from_seqlens([1, 1], [0, 2, 4], [1, 1]).materialize(shape)


@pytest.mark.parametrize(
    "mask",
    [
        BlockDiagonalGappyKeysMask.from_seqlens([1, 1], [0, 2, 4], [1, 2]),
        BlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens([1, 1], [0, 2, 4], [1, 2]),
        BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask.from_seqlens_local_gappy(
            [1, 1], [0, 2, 4], [1, 2], 3, 1
        ),
    ],
    ids=lambda mask: type(mask).__name__,
)
def test_moving_keeps_the_class(mask):
    moved = mask.to("meta")
    assert type(moved) is type(mask)
    assert moved.k_seqinfo.seqlen.device.type == "meta"
    assert moved.k_seqinfo.seqstart.device.type == "meta"
    assert moved.mask_spec().band == mask.mask_spec().band


@pytest.mark.parametrize("form", [list, torch.tensor])
@pytest.mark.parametrize(
    ("mask_type", "paged_type"),
    [
        (BlockDiagonalGappyKeysMask, PagedBlockDiagonalGappyKeysMask),
        (
            BlockDiagonalCausalWithOffsetGappyKeysMask,
            PagedBlockDiagonalCausalWithOffsetGappyKeysMask,
        ),
    ],
)
def test_pages_follow_the_notional_padding(form, mask_type, paged_type):
    # Pages in order, and as many as the padding holds: both masks mean the same rows of memory.
    mask = mask_type.from_seqlens(form([2, 1]), form([1, 10, 16]), form([5, 3]))
    tables = torch.arange(8, dtype=torch.int32).reshape(2, 4)
    paged = mask.make_paged(tables, page_size=2, notional_padding=8, paged_type=paged_type)
    assert type(paged) is paged_type
    assert paged.k_seqinfo.seqstart_py == [1, 2]
    assert paged.k_seqinfo.seqlen_py == [5, 3]
    assert torch.equal(paged.materialize((3, 16)), mask.materialize((3, 16)))


def test_pages_of_starts_on_another_device_are_never_read():
    numbers = torch.zeros(2, dtype=torch.int32, device="meta")
    starts = torch.zeros(3, dtype=torch.int32, device="meta")
    mask = BlockDiagonalGappyKeysMask.from_seqlens(numbers, starts, numbers.clone())
    tables = torch.zeros(2, 4, dtype=torch.int32, device="meta")
    paged = mask.make_paged(tables, 2, 8, PagedBlockDiagonalGappyKeysMask)
    assert paged.k_seqinfo.seqstart.shape == (2,)
    assert paged.mask_spec().sequences.max_k_len == 0


def test_pages_must_divide_the_notional_padding():
    mask = BlockDiagonalGappyKeysMask.from_seqlens([1], [0, 4], [4])
    tables = torch.zeros(1, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match="notional_padding that page_size divides, got 5 and 2"):
        mask.make_paged(tables, 2, 5, PagedBlockDiagonalGappyKeysMask)
    with pytest.raises(TypeError, match="an int as notional_padding, got None"):
        mask.make_paged(tables, 2, None, PagedBlockDiagonalGappyKeysMask)


@pytest.mark.parametrize(("starts", "lengths"), [([4, 5], [1]), ([0, 5], [5])])
def test_pages_must_hold_the_keys(starts, lengths):
    mask = BlockDiagonalGappyKeysMask.from_seqlens([1], starts, lengths)
    tables = torch.zeros(1, 2, dtype=torch.int32)
    with pytest.raises(AssertionError, match="within the 4 slots of their pages"):
        mask.make_paged(tables, 2, 4, PagedBlockDiagonalGappyKeysMask)


def test_no_pages_for_windows_on_both_sides():
    mask_type = BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask
    mask = mask_type.from_seqlens_local_gappy([1], [0, 4], [4], 1, 1)
    tables = torch.zeros(1, 2, dtype=torch.int32)
    with pytest.raises(NotImplementedError, match="no mask of pages has a window on both sides"):
        mask.make_paged(tables, 2, 4, PagedBlockDiagonalGappyKeysMask)


def test_pages_keep_causality():
    tables = torch.tensor([[1, 2]], dtype=torch.int32)
    mask = BlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens([1], [0, 4], [3])
    right = "PagedBlockDiagonalCausalWithOffsetGappyKeysMask"
    with pytest.raises(ValueError, match=f"expected paged_type {right}, got"):
        mask.make_paged(tables, 2, 4, PagedBlockDiagonalGappyKeysMask)


def test_rows_of_key_end_at_the_last_start():
    mask = BlockDiagonalGappyKeysMask.from_seqlens([1, 1], [0, 4, 9], [3, 2])
    mask.check_fits(2, 9)
    with pytest.raises(ValueError, match=r"key with 9 rows, for .* of lengths \[3, 2\], got 8"):
        mask.check_fits(2, 8)


def test_windows_are_checked():
    with pytest.raises(ValueError, match="window_left of 0 or more, got -1"):
        BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask.from_seqlens_local_gappy(
            [1], [0, 4], [3], window_left=-1, window_right=0
        )


def test_lengths_without_the_window_are_refused():
    arguments = "q_seqlen, kv_seqstarts, kv_seqlen, window_left, window_right"
    with pytest.raises(TypeError, match=rf"call from_seqlens_local_gappy\({arguments}\)"):
        BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask.from_seqlens([1], [0, 2], [2])
