"""Keys padded to one length: what each class lets queries see, and how it is built."""

import pytest
import torch

from attn_ops.fmha.attn_bias import (
    BlockDiagonalCausalLocalAttentionPaddedKeysMask,
    BlockDiagonalCausalWithOffsetPaddedKeysMask,
    BlockDiagonalLocalAttentionPaddedKeysMask,
    BlockDiagonalMask,
    BlockDiagonalPaddedKeysMask,
    PagedBlockDiagonalCausalLocalPaddedKeysMask,
    PagedBlockDiagonalCausalWithOffsetPaddedKeysMask,
    PagedBlockDiagonalPaddedKeysMask,
)
from reference import mask_formulas as formulas

BATCHES = formulas.batches()
PADDING = 14


def expected(batch, rule, padding=PADDING):
    slots = [range(b * padding, b * padding + n) for b, n in enumerate(batch.kv_seqlen)]
    return formulas.packed(rule, batch.q_seqlen, slots, padding * len(slots))


def materialized(mask, batch, padding=PADDING):
    return mask.materialize((batch.num_queries, padding * len(batch.kv_seqlen)))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("form", [list, torch.tensor])
@pytest.mark.parametrize(
    ("mask_type", "rule"),
    [
        (BlockDiagonalPaddedKeysMask, formulas.every_key),
        (BlockDiagonalCausalWithOffsetPaddedKeysMask, formulas.causal_from_bottom_right),
    ],
)
def test_queries_see_the_keys_in_use(batch, form, mask_type, rule):
    mask = mask_type.from_seqlens(form(batch.q_seqlen), PADDING, form(batch.kv_seqlen))
    assert type(mask) is mask_type
    assert torch.equal(materialized(mask, batch), expected(batch, rule))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("window", [1, 3, 20])
def test_causal_windows(batch, window):
    mask = BlockDiagonalCausalLocalAttentionPaddedKeysMask.from_seqlens_local(
        batch.q_seqlen, PADDING, batch.kv_seqlen, window
    )
    rule = formulas.causal_window_from_bottom_right(window)
    assert torch.equal(materialized(mask, batch), expected(batch, rule))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize(("left", "right"), [(0, 0), (1, 2), (20, 0)])
def test_windows_on_both_sides(batch, left, right):
    mask = BlockDiagonalLocalAttentionPaddedKeysMask.from_seqlens_local(
        batch.q_seqlen, PADDING, batch.kv_seqlen, window_left=left, window_right=right
    )
    rule = formulas.window_from_bottom_right(left, right)
    assert torch.equal(materialized(mask, batch), expected(batch, rule))


def test_padded_masks_are_no_packed_ones():
    mask = BlockDiagonalPaddedKeysMask.from_seqlens([1], 2, [2])
    assert not isinstance(mask, BlockDiagonalMask)
    assert isinstance(
        BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([1], 2, [2]),
        BlockDiagonalPaddedKeysMask,
    )


def test_causal_diagonal_is_ignored():
    mask = BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([1, 1], 4, [2, 3], [9, 9])
    assert torch.equal(
        materialized(mask, formulas.Batch([1, 1], [2, 3]), 4),
        expected(formulas.Batch([1, 1], [2, 3]), formulas.causal_from_bottom_right, 4),
    )
    assert mask.causal_diagonal is None


def test_padding_holds_the_keys():
    with pytest.raises(AssertionError, match="at most the padding 4"):
        BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], 4, [5, 1])


def test_counts_must_match():
    with pytest.raises(AssertionError, match="as many sequences of keys as of queries"):
        BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], 4, [1])


@pytest.mark.parametrize(("shape", "letter"), [((2, 9), "k"), ((3, 8), "q")])
def test_materialize_refuses_other_lengths(shape, letter):
    with pytest.raises(ValueError, match=f"{letter} shapes wrong"):
        BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], 4, [2, 3]).materialize(shape)


@pytest.mark.parametrize(
    "mask",
    [
        BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], 4, [2, 3]),
        BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([1, 1], 4, [2, 3]),
        BlockDiagonalCausalLocalAttentionPaddedKeysMask.from_seqlens_local([1, 1], 4, [2, 3], 2),
        BlockDiagonalLocalAttentionPaddedKeysMask.from_seqlens_local([1, 1], 4, [2, 3], 2, 1),
    ],
    ids=lambda mask: type(mask).__name__,
)
def test_moving_keeps_the_class(mask):
    moved = mask.to("meta")
    assert type(moved) is type(mask)
    assert moved.k_seqinfo.seqlen.device.type == "meta"
    assert moved.mask_spec().band == mask.mask_spec().band
    assert mask.k_seqinfo.seqlen.device.type == "cpu"


def test_lengths_changed_in_place_change_the_mask():
    mask = BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([1, 1], 8, [5, 5])
    spec = mask.mask_spec()
    mask.k_seqinfo.from_seqlens_padded_inplace([2, 4])
    assert spec.sequences.k_len.tolist() == [2, 4]
    batch = formulas.Batch([1, 1], [2, 4])
    rule = formulas.causal_from_bottom_right
    assert torch.equal(materialized(mask, batch, 8), expected(batch, rule, 8))


def test_keys_may_grow_up_to_the_padding():
    mask = BlockDiagonalPaddedKeysMask.from_seqlens([1], 8, [2])
    assert mask.mask_spec().sequences.max_k_len == 8


def test_pages_take_over_lengths_but_not_the_padding():
    tables = torch.tensor([[1, 2, 0], [3, 4, 5]], dtype=torch.int32)
    padded = BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([1, 1], 4, [2, 3])
    paged = padded.make_paged(
        tables, page_size=2, paged_type=PagedBlockDiagonalCausalWithOffsetPaddedKeysMask
    )
    assert type(paged) is PagedBlockDiagonalCausalWithOffsetPaddedKeysMask
    assert paged.k_seqinfo.padding == 6
    assert padded.k_seqinfo.padding == 4
    padded.k_seqinfo.from_seqlens_padded_inplace([1, 1])
    assert paged.k_seqinfo.seqlen_py == [1, 1]


def test_pages_take_over_the_window():
    tables = torch.tensor([[1, 2]], dtype=torch.int32)
    padded = BlockDiagonalCausalLocalAttentionPaddedKeysMask.from_seqlens_local([1], 4, [3], 2)
    paged = padded.make_paged(tables, 2, PagedBlockDiagonalCausalLocalPaddedKeysMask)
    assert paged._window_size == 2


@pytest.mark.parametrize(
    ("mask", "wrong", "right"),
    [
        (
            BlockDiagonalPaddedKeysMask.from_seqlens([1], 4, [3]),
            PagedBlockDiagonalCausalWithOffsetPaddedKeysMask,
            PagedBlockDiagonalPaddedKeysMask,
        ),
        (
            BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([1], 4, [3]),
            PagedBlockDiagonalPaddedKeysMask,
            PagedBlockDiagonalCausalWithOffsetPaddedKeysMask,
        ),
        (
            BlockDiagonalCausalLocalAttentionPaddedKeysMask.from_seqlens_local([1], 4, [3], 2),
            PagedBlockDiagonalPaddedKeysMask,
            PagedBlockDiagonalCausalLocalPaddedKeysMask,
        ),
    ],
    ids=["plain", "causal", "window"],
)
def test_pages_keep_causality_and_window(mask, wrong, right):
    tables = torch.tensor([[1, 2]], dtype=torch.int32)
    assert mask.make_paged(tables, 2, right).mask_spec().band == mask.mask_spec().band
    with pytest.raises(ValueError, match=f"expected paged_type {right.__name__}, got"):
        mask.make_paged(tables, 2, wrong)


def test_rows_of_key_are_the_padded_ones():
    mask = BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], 16, torch.tensor([2, 3]))
    mask.check_fits(2, 32)
    with pytest.raises(ValueError, match="expected key with 32 rows"):
        mask.check_fits(2, 30)


def test_lengths_grow_in_place_up_to_the_padding():
    mask = BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], 8, [2, 3])
    mask.k_seqinfo.from_seqlens_padded_inplace([8, 1])
    assert mask.mask_spec().sequences.k_len.tolist() == mask.k_seqinfo.seqlen_py == [8, 1]
    assert mask.k_seqinfo.max_seqlen == 8
    mask.check_fits(2, 16)


def test_no_pages_for_windows_on_both_sides():
    mask = BlockDiagonalLocalAttentionPaddedKeysMask.from_seqlens_local([1], 4, [3], 2, 1)
    with pytest.raises(NotImplementedError, match="no mask of pages has a window on both sides"):
        mask.make_paged(torch.zeros(1, 2, dtype=torch.int32), 2, PagedBlockDiagonalPaddedKeysMask)


def test_pages_must_hold_the_keys():
    mask = BlockDiagonalPaddedKeysMask.from_seqlens([1], 4, [3])
    with pytest.raises(AssertionError, match="at most the padding 2"):
        mask.make_paged(torch.zeros(1, 1, dtype=torch.int32), 2, PagedBlockDiagonalPaddedKeysMask)


@pytest.mark.parametrize("window", [0, -1])
def test_windows_of_no_key_are_refused(window):
    tables = torch.zeros(2, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"window_size in \[1, 2\*\*63\), got"):
        BlockDiagonalCausalLocalAttentionPaddedKeysMask.from_seqlens_local(
            [1, 1], 4, [3, 2], window_size=window
        )
    with pytest.raises(ValueError, match=r"window_size in \[1, 2\*\*63\), got"):
        PagedBlockDiagonalCausalLocalPaddedKeysMask.from_seqlens_local(
            [1, 1], [3, 2], tables, page_size=2, window_size=window
        )


@pytest.mark.parametrize(
    ("left", "right", "error", "message"),
    [
        (-1, 0, ValueError, "window_left of 0 or more, got -1"),
        (0, -2, ValueError, "window_right of 0 or more, got -2"),
        (0, 2**63, ValueError, r"window_right of 0 or more and below 2\*\*63, got 9"),
        (1.5, 0, TypeError, "an int as window_left, got 1.5"),
    ],
)
def test_windows_on_both_sides_are_checked(left, right, error, message):
    with pytest.raises(error, match=message):
        BlockDiagonalLocalAttentionPaddedKeysMask.from_seqlens_local(
            [1, 1], 4, [3, 2], window_left=left, window_right=right
        )


@pytest.mark.parametrize("padding", [4.0, None, [3, 2]])
def test_padding_is_an_int(padding):
    with pytest.raises(TypeError, match="an int as kv_padding, got"):
        BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], padding, [3, 2])


def test_lengths_are_a_list():
    with pytest.raises(TypeError, match=r"lengths as a list of Python ints or .* got 5"):
        BlockDiagonalMask.from_seqlens(5)


@pytest.mark.parametrize(
    ("mask_type", "windows"),
    [
        (BlockDiagonalCausalLocalAttentionPaddedKeysMask, "window_size"),
        (BlockDiagonalLocalAttentionPaddedKeysMask, "window_left, window_right"),
    ],
)
def test_lengths_without_the_window_are_refused(mask_type, windows):
    call = rf"call from_seqlens_local\(q_seqlen, kv_padding, kv_seqlen, {windows}\)"
    with pytest.raises(TypeError, match=rf"^{mask_type.__name__}\.from_seqlens: .*; {call}"):
        mask_type.from_seqlens([1], 4, [2])
