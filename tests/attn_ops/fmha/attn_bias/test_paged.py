"""Keys in pages, in any order and shared: what each class lets queries see, how it is built."""

import pytest
import torch

from attn_ops.fmha import attn_bias
from attn_ops.fmha.attn_bias import (
    BlockDiagonalPaddedKeysMask,
    PagedBlockDiagonalCausalLocalPaddedKeysMask,
    PagedBlockDiagonalCausalWithOffsetGappyKeysMask,
    PagedBlockDiagonalCausalWithOffsetPaddedKeysMask,
    PagedBlockDiagonalGappyKeysMask,
    PagedBlockDiagonalPaddedKeysMask,
)
from reference import mask_formulas as formulas

BATCHES = formulas.batches()
PAGE_SIZES = [1, 7, 16, 256]
MOST_KEYS = 16  # that a sequence needs room for, with a start before its first key


def tables_of(batch, page_size, shared):
    """Return tables of shuffled pages; shared ones are the same for every sequence."""
    pages = -(-MOST_KEYS // page_size)
    generator = torch.Generator().manual_seed(page_size)
    count = len(batch.q_seqlen)
    order = torch.randperm(count * pages + 3, generator=generator).to(torch.int32)
    if shared:
        return order[:pages].repeat(count, 1)
    return order[: count * pages].reshape(count, pages)


def expected(batch, rule, tables, page_size, starts=None):
    slots = [
        [
            int(table[t // page_size]) * page_size + t % page_size
            for t in range(start, start + length)
        ]
        for table, start, length in zip(
            tables, starts or [0] * len(batch.kv_seqlen), batch.kv_seqlen, strict=True
        )
    ]
    num_slots = (int(tables.max()) + 1) * page_size
    return formulas.packed(rule, batch.q_seqlen, slots, num_slots)


def materialized(mask, batch):
    return mask.materialize((batch.num_queries, mask.block_tables.numel() * mask.page_size))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("mask_type", "rule"),
    [
        (PagedBlockDiagonalPaddedKeysMask, formulas.every_key),
        (
            PagedBlockDiagonalCausalWithOffsetPaddedKeysMask,
            formulas.causal_from_bottom_right,
        ),
    ],
)
def test_queries_see_the_keys_of_their_pages(batch, page_size, shared, mask_type, rule):
    tables = tables_of(batch, page_size, shared)
    mask = mask_type.from_seqlens(batch.q_seqlen, batch.kv_seqlen, tables, page_size)
    assert type(mask) is mask_type
    assert torch.equal(materialized(mask, batch), expected(batch, rule, tables, page_size))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("window", [1, 3, 20])
def test_windows(batch, window):
    tables = tables_of(batch, 7, shared=False)
    mask = PagedBlockDiagonalCausalLocalPaddedKeysMask.from_seqlens_local(
        batch.q_seqlen, batch.kv_seqlen, tables, 7, window
    )
    rule = formulas.causal_window_from_bottom_right(window)
    assert torch.equal(materialized(mask, batch), expected(batch, rule, tables, 7))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("mask_type", "rule"),
    [
        (PagedBlockDiagonalGappyKeysMask, formulas.every_key),
        (PagedBlockDiagonalCausalWithOffsetGappyKeysMask, formulas.causal_from_bottom_right),
    ],
)
def test_queries_see_keys_from_their_start_on(batch, page_size, shared, mask_type, rule):
    tables = tables_of(batch, page_size, shared)
    starts = [b % 4 for b in range(len(batch.q_seqlen))]
    mask = mask_type.from_seqlens(batch.q_seqlen, starts, batch.kv_seqlen, tables, page_size)
    assert type(mask) is mask_type
    want = expected(batch, rule, tables, page_size, starts)
    assert torch.equal(materialized(mask, batch), want)


def test_lengths_may_be_tensors():
    tables = torch.tensor([[3, 1], [0, 2]], dtype=torch.int32)
    lists = PagedBlockDiagonalPaddedKeysMask.from_seqlens([1, 2], [3, 4], tables, 2)
    tensors = PagedBlockDiagonalPaddedKeysMask.from_seqlens(
        torch.tensor([1, 2]), torch.tensor([3, 4]), tables, 2
    )
    assert torch.equal(lists.materialize((3, 8)), tensors.materialize((3, 8)))


def test_unused_entries_of_a_table_hide_nothing():
    # The second entry of the first table is not in use, and names a page that is.
    tables = torch.tensor([[0, 0], [0, 1]], dtype=torch.int32)
    mask = PagedBlockDiagonalPaddedKeysMask.from_seqlens([1, 1], [2, 3], tables, 2)
    assert (mask.materialize((2, 8)) == 0).tolist() == [
        [True, True, False, False],
        [True, True, True, False],
    ]


def test_gappy_lengths_are_lengths():
    tables = torch.tensor([[0, 1]], dtype=torch.int32)
    mask = PagedBlockDiagonalGappyKeysMask.from_seqlens([1], [1], [2], tables, 2)
    assert mask.k_seqinfo.seqlen_py == [2]
    assert mask.k_seqinfo.seqstart_py == [1]


def test_tables_are_shared_so_that_their_changes_are_seen():
    tables = torch.tensor([[0, 1]], dtype=torch.int32)
    made = PagedBlockDiagonalPaddedKeysMask.from_seqlens([1], [2], tables, 2)
    padded = BlockDiagonalPaddedKeysMask.from_seqlens([1], 4, [2])
    paged = padded.make_paged(tables, 2, PagedBlockDiagonalPaddedKeysMask)
    for mask in (made, paged):
        assert mask.mask_spec().pages.block_table is tables


def test_tables_of_int64_would_be_copied_and_are_refused():
    tables = torch.tensor([[0, 1]])
    padded = BlockDiagonalPaddedKeysMask.from_seqlens([1], 4, [2])
    with pytest.raises(ValueError, match=r"got torch.int64 \[1, 2\]; convert it once with .to\("):
        padded.make_paged(tables, 2, PagedBlockDiagonalPaddedKeysMask)
    with pytest.raises(ValueError, match="convert it once"):
        PagedBlockDiagonalPaddedKeysMask.from_seqlens([1], [2], tables, 2)


def test_rows_of_key_are_whole_pages():
    tables = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
    mask = PagedBlockDiagonalPaddedKeysMask.from_seqlens([1, 1], [2, 3], tables, 2)
    mask.check_fits(2, 8)
    mask.check_fits(2, 20)  # a cache has more pages than one mask names
    with pytest.raises(ValueError, match=r"whole pages of 2 rows for .* got 9 rows"):
        mask.check_fits(2, 9)
    with pytest.raises(ValueError, match="expected query with 2 rows"):
        mask.check_fits(3, 8)


@pytest.mark.parametrize(
    "tables",
    [
        torch.zeros(2, 2, dtype=torch.int32),
        torch.zeros(1, 2),
        torch.zeros(1, 2, 1, dtype=torch.int32),
    ],
)
def test_tables_have_a_row_for_each_sequence(tables):
    with pytest.raises(ValueError, match=r"an int32 tensor \[1, pages\]"):
        PagedBlockDiagonalPaddedKeysMask.from_seqlens([1], [2], tables, 2)


def test_pages_hold_a_key_at_least():
    tables = torch.zeros(1, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match="page_size of 1 or more, got 0"):
        PagedBlockDiagonalPaddedKeysMask.from_seqlens([1], [0], tables, 0)


@pytest.mark.parametrize("size", [2.0, None, "2"])
def test_page_size_is_an_int(size):
    tables = torch.zeros(1, 2, dtype=torch.int32)
    with pytest.raises(TypeError, match="expected an int as page_size, got"):
        PagedBlockDiagonalPaddedKeysMask.from_seqlens([1], [2], tables, size)
    with pytest.raises(TypeError, match="expected an int as page_size, got"):
        PagedBlockDiagonalGappyKeysMask.from_seqlens([1], [0], [2], tables, size)


def test_pages_must_hold_the_keys():
    tables = torch.zeros(1, 2, dtype=torch.int32)
    with pytest.raises(AssertionError, match="at most the padding 4"):
        PagedBlockDiagonalPaddedKeysMask.from_seqlens([1], [5], tables, 2)
    with pytest.raises(ValueError, match="within the 4 slots of their pages"):
        PagedBlockDiagonalGappyKeysMask.from_seqlens([1], [2], [3], tables, 2)


def test_counts_must_match():
    tables = torch.zeros(2, 2, dtype=torch.int32)
    with pytest.raises(AssertionError, match="as many sequences of keys as of queries"):
        PagedBlockDiagonalPaddedKeysMask.from_seqlens([1, 1], [2], tables, 2)
    with pytest.raises(AssertionError, match="as many lengths of keys as of queries"):
        PagedBlockDiagonalGappyKeysMask.from_seqlens([1, 1], [0, 0, 4], [2, 2], tables, 2)


@pytest.mark.parametrize(("shape", "letter"), [((2, 6), "k"), ((3, 8), "q"), ((8,), "q")])
def test_materialize_refuses_other_lengths(shape, letter):
    tables = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
    mask = PagedBlockDiagonalPaddedKeysMask.from_seqlens([1, 1], [2, 3], tables, 2)
    with pytest.raises(ValueError, match=f"{letter} shapes wrong"):
        mask.materialize(shape)


def masks_of_each_class():
    tables = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
    lengths = ([1, 1], [2, 3], tables, 2)
    gappy = ([1, 1], [1, 0], [2, 3], tables, 2)
    return [
        PagedBlockDiagonalPaddedKeysMask.from_seqlens(*lengths),
        PagedBlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(*lengths),
        PagedBlockDiagonalCausalLocalPaddedKeysMask.from_seqlens_local(*lengths, 2),
        PagedBlockDiagonalGappyKeysMask.from_seqlens(*gappy),
        PagedBlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens(*gappy),
    ]


@pytest.mark.parametrize("mask", masks_of_each_class(), ids=lambda mask: type(mask).__name__)
def test_moving_keeps_the_class(mask):
    moved = mask.to("meta")
    assert type(moved) is type(mask)
    spec = moved.mask_spec()
    assert spec.band == mask.mask_spec().band
    for tensor in (
        spec.pages.block_table,
        spec.sequences.q_start,
        spec.sequences.k_start,
        spec.sequences.k_len,
    ):
        assert tensor.device.type == "meta"


def test_everything_lies_where_the_tables_do():
    tables = torch.zeros(2, 2, dtype=torch.int32, device="meta")
    for mask in (
        PagedBlockDiagonalPaddedKeysMask.from_seqlens([1, 1], [2, 3], tables, 2),
        PagedBlockDiagonalGappyKeysMask.from_seqlens([1, 1], [1, 0], [2, 3], tables, 2),
    ):
        assert mask.q_seqinfo.seqstart.device.type == "meta"
        assert mask.k_seqinfo.seqlen.device.type == "meta"


def test_lengths_changed_in_place_change_the_mask():
    tables = torch.tensor([[3, 1], [0, 2]], dtype=torch.int32)
    mask = PagedBlockDiagonalPaddedKeysMask.from_seqlens([1, 1], [4, 4], tables, 2)
    spec = mask.mask_spec()
    mask.k_seqinfo.from_seqlens_padded_inplace([1, 3])
    assert spec.sequences.k_len.tolist() == [1, 3]
    batch = formulas.Batch([1, 1], [1, 3])
    assert torch.equal(materialized(mask, batch), expected(batch, formulas.every_key, tables, 2))


def test_lengths_without_the_window_are_refused():
    tables = torch.zeros(1, 2, dtype=torch.int32)
    call = r"from_seqlens_local\(q_seqlen, kv_seqlen, block_tables, page_size, window_size\)"
    with pytest.raises(TypeError, match=f"expected a window besides the lengths, .*call {call}"):
        PagedBlockDiagonalCausalLocalPaddedKeysMask.from_seqlens([1], [2], tables, 2)


def test_a_list_is_no_table():
    tables, paged = [[0, 1], [2, 3]], attn_bias.PagedBlockDiagonalPaddedKeysMask
    padded = attn_bias.BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], 4, [2, 3])
    gappy = attn_bias.BlockDiagonalGappyKeysMask.from_seqlens([1, 1], [0, 4, 8], [2, 3])
    gappy_paged = attn_bias.PagedBlockDiagonalGappyKeysMask
    for make in (
        lambda: padded.make_paged(tables, 2, paged),
        lambda: gappy.make_paged(tables, 2, 4, gappy_paged),
        lambda: paged.from_seqlens([1, 1], [2, 3], tables, 2),
        lambda: gappy_paged.from_seqlens([1, 1], [0, 0], [2, 3], tables, 2),
    ):
        with pytest.raises(TypeError, match=r"expected block_tables, an int32 tensor .*'list'>"):
            make()
