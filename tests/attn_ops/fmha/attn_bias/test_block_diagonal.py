"""Packed sequences: what each class lets queries see, and how tensors are joined and cut."""

import re

import pytest
import torch

from attn_ops import memory_efficient_attention, memory_efficient_attention_forward
from attn_ops.fmha.attn_bias import (
    BlockDiagonalCausalFromBottomRightMask,
    BlockDiagonalCausalLocalAttentionFromBottomRightMask,
    BlockDiagonalCausalLocalAttentionMask,
    BlockDiagonalCausalMask,
    BlockDiagonalMask,
    _SeqLenInfo,
)
from reference import mask_formulas as formulas

BATCHES = formulas.batches()


def expected(batch, rule):
    return formulas.packed(rule, batch.q_seqlen, batch.packed_slots(), sum(batch.kv_seqlen))


def materialized(mask, batch):
    return mask.materialize((batch.num_queries, sum(batch.kv_seqlen)))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("form", [list, torch.tensor])
def test_queries_see_their_own_sequence(batch, form):
    mask = BlockDiagonalMask.from_seqlens(form(batch.q_seqlen), form(batch.kv_seqlen))
    assert torch.equal(materialized(mask, batch), expected(batch, formulas.every_key))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_causal(batch):
    mask = BlockDiagonalMask.from_seqlens(batch.q_seqlen, batch.kv_seqlen).make_causal()
    assert type(mask) is BlockDiagonalCausalMask
    assert torch.equal(materialized(mask, batch), expected(batch, formulas.causal))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_causal_from_bottom_right(batch):
    longer = batch.with_enough_keys()
    mask = BlockDiagonalMask.from_seqlens(longer.q_seqlen, longer.kv_seqlen)
    mask = mask.make_causal_from_bottomright()
    assert type(mask) is BlockDiagonalCausalFromBottomRightMask
    rule = formulas.causal_from_bottom_right
    assert torch.equal(materialized(mask, longer), expected(longer, rule))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("window", [1, 3, 20])
def test_windows(batch, window):
    longer = batch.with_enough_keys()
    mask = BlockDiagonalMask.from_seqlens(longer.q_seqlen, longer.kv_seqlen)
    local = mask.make_local_attention(window)
    assert type(local) is BlockDiagonalCausalLocalAttentionMask
    assert isinstance(local, BlockDiagonalCausalMask)
    rule = formulas.causal_window(window)
    assert torch.equal(materialized(local, longer), expected(longer, rule))

    from_end = mask.make_local_attention_from_bottomright(window)
    assert type(from_end) is BlockDiagonalCausalLocalAttentionFromBottomRightMask
    assert isinstance(from_end, BlockDiagonalCausalFromBottomRightMask)
    rule = formulas.causal_window_from_bottom_right(window)
    assert torch.equal(materialized(from_end, longer), expected(longer, rule))


def test_window_reaches_back_to_the_first_keys():
    batch = formulas.Batch([5], [3])
    mask = BlockDiagonalMask.from_seqlens(batch.q_seqlen, batch.kv_seqlen)
    rule = formulas.causal_window(3)
    local = mask.make_local_attention(3)
    assert torch.equal(materialized(local, batch), expected(batch, rule))


@pytest.mark.parametrize("form", [list, torch.tensor])
def test_query_beyond_all_windows_is_refused(form):
    mask = BlockDiagonalMask.from_seqlens(form([1, 5]), form([1, 3]))
    with pytest.raises(
        RuntimeError,
        match=r"No keys are attended in q_seqlen 5 k_seqlen 3 .*; .* make_local_attention_from_b",
    ):
        mask.make_local_attention(2)


@pytest.mark.parametrize("form", [list, torch.tensor])
def test_fewer_keys_than_queries_are_refused_from_bottom_right(form):
    mask = BlockDiagonalMask.from_seqlens(form([1, 5]), form([1, 3]))
    message = "Block #1 has num_keys=3 and num_queries=5"
    with pytest.raises(ValueError, match=message):
        mask.make_causal_from_bottomright()
    with pytest.raises(ValueError, match=message):
        mask.make_local_attention_from_bottomright(2)


@pytest.mark.parametrize("window", [0, -3])
def test_windows_must_be_positive(window):
    mask = BlockDiagonalMask.from_seqlens([2])
    with pytest.raises(ValueError, match="window_size"):
        mask.make_local_attention(window)
    with pytest.raises(ValueError, match="window_size"):
        mask.make_local_attention_from_bottomright(window)


def test_counts_must_match():
    with pytest.raises(AssertionError, match="as many sequences of keys as of queries, got 1 and"):
        BlockDiagonalMask.from_seqlens([1, 2], [3])


def test_equal_lengths_are_shared():
    for mask in (
        BlockDiagonalMask.from_seqlens([1, 2]),
        BlockDiagonalMask.from_seqlens([1, 2], (1, 2)),
        BlockDiagonalMask.from_seqlens(torch.tensor([1, 2])),
    ):
        assert mask.q_seqinfo is mask.k_seqinfo
        moved = mask.to("meta")
        assert moved.q_seqinfo is moved.k_seqinfo
        assert mask.make_causal().q_seqinfo is mask.q_seqinfo


@pytest.mark.parametrize("shape", [(3, 4), (2, 3), (1, 3, 5)])
def test_materialize_refuses_other_lengths(shape):
    with pytest.raises(AssertionError, match=r"with \(3, 3\), got"):
        BlockDiagonalMask.from_seqlens([1, 2]).materialize(shape)


@pytest.mark.parametrize(
    "make",
    [
        lambda mask: mask,
        BlockDiagonalMask.make_causal,
        BlockDiagonalMask.make_causal_from_bottomright,
        lambda mask: mask.make_local_attention(2),
        lambda mask: mask.make_local_attention_from_bottomright(2),
    ],
)
def test_moving_keeps_the_class(make):
    mask = make(BlockDiagonalMask.from_tensor_list([torch.zeros(2, 3, 1)])[0])
    moved = mask.to("meta")
    assert type(moved) is type(mask)
    assert moved.q_seqinfo.seqstart.device.type == "meta"
    assert moved._batch_sizes == [2]
    assert moved.mask_spec().band == mask.mask_spec().band


def test_tensors_are_joined_and_cut():
    tensors = [torch.randn(2, 3, 4, 5), torch.randn(1, 0, 4, 5), torch.randn(3, 1, 4, 5)]
    mask, joined = BlockDiagonalMask.from_tensor_list(tensors)
    assert type(mask) is BlockDiagonalMask
    assert joined.shape == (1, 9, 4, 5)
    assert mask.q_seqinfo.lengths() == [3, 3, 0, 1, 1, 1]
    for part, tensor in zip(mask.split(joined), tensors, strict=True):
        assert torch.equal(part, tensor)
    for part, tensor in zip(mask.make_causal().split(joined), tensors, strict=True):
        assert torch.equal(part, tensor)


def test_subclasses_join_too():
    mask, _ = BlockDiagonalCausalMask.from_tensor_list([torch.randn(2, 3, 1)])
    assert type(mask) is BlockDiagonalCausalMask


@pytest.mark.parametrize("with_values", [True, False])
def test_queries_keys_and_values_are_joined_and_cut(with_values):
    queries = [torch.randn(2, 3, 4), torch.randn(1, 1, 4)]
    keys = [torch.randn(2, 5, 4), torch.randn(1, 2, 4)]
    values = [torch.randn(2, 5, 6), torch.randn(1, 2, 6)] if with_values else None
    mask, q, k, v = BlockDiagonalMask.from_tensor_lists_qkv(queries, keys, values)
    assert (q.shape, k.shape) == ((1, 7, 4), (1, 12, 4))
    assert mask.q_seqinfo.lengths() == [3, 3, 1]
    assert mask.k_seqinfo.lengths() == [5, 5, 2]
    assert all(map(torch.equal, mask.split_queries(q), queries))
    assert all(map(torch.equal, mask.split_kv(k), keys))
    assert (v is None) == (values is None)
    if with_values:
        assert all(map(torch.equal, mask.split_kv(v), values))
    with pytest.raises(AssertionError, match="use split_queries or split_kv"):
        mask.split(q)


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        ([torch.zeros(2, 5, 4), torch.zeros(1, 1, 4)], None),
        ([torch.zeros(1, 5, 4)], None),
        ([torch.zeros(2, 5, 4)], [torch.zeros(2, 4, 4)]),
        ([torch.zeros(2, 5, 4)], []),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(keys, values):
    with pytest.raises(AssertionError, match="BlockDiagonalMask: expected"):
        BlockDiagonalMask.from_tensor_lists_qkv([torch.zeros(2, 3, 4)], keys, values)


def test_split_refuses_another_shape():
    mask = BlockDiagonalMask.from_seqlens([1, 2], [3, 4])
    with pytest.raises(ValueError, match=r"expected a tensor \[1, 3, \*\]"):
        mask.split_queries(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"expected a tensor \[1, 7, \*\]"):
        mask.split_kv(torch.zeros(2, 7))


def test_batch_sizes_may_be_set_afterwards():
    mask = BlockDiagonalMask.from_seqlens([3, 3])
    mask._batch_sizes = [2]
    assert [tuple(part.shape) for part in mask.split(torch.zeros(1, 6))] == [(2, 3)]


def test_lengths_changed_in_place_change_the_mask():
    mask = BlockDiagonalMask.from_seqlens([2, 3], [4, 1], max_q_seqlen=4).make_causal()
    spec = mask.mask_spec()
    mask.q_seqinfo.from_seqlens_inplace([4, 1])
    mask.k_seqinfo.from_seqlens_inplace([2, 3])
    assert spec.sequences.q_start.tolist() == [0, 4, 5]
    batch = formulas.Batch([4, 1], [2, 3])
    assert torch.equal(materialized(mask, batch), expected(batch, formulas.causal))


def test_lengths_on_another_device_are_never_read():
    lengths = torch.zeros(2, dtype=torch.int32, device="meta")
    mask = BlockDiagonalMask.from_seqlens(lengths, lengths.clone(), max_q_seqlen=7)
    for made in (
        mask.make_causal_from_bottomright(),
        mask.make_local_attention(2),
        mask.make_local_attention_from_bottomright(2),
    ):
        sequences = made.mask_spec().sequences
        assert (sequences.max_q_len, sequences.max_k_len) == (7, 0)
        assert sequences.q_start.device.type == "meta"


def test_constructor_takes_the_fields_of_xformers():
    info = _SeqLenInfo.from_seqlens([2])
    mask = BlockDiagonalCausalLocalAttentionMask(
        q_seqinfo=info, k_seqinfo=info, _batch_sizes=None, _window_size=1
    )
    assert torch.equal(mask.materialize((2, 2)).exp(), torch.eye(2))


@pytest.mark.parametrize(("rows", "name"), [((9, 8), "query"), ((8, 9), "key"), ((7, 8), "query")])
def test_lengths_add_up_to_the_rows(rows, name):
    mask = BlockDiagonalMask.from_seqlens([4, 4])
    mask.check_fits(8, 8)
    with pytest.raises(ValueError, match=rf"{name} with 8 rows, for .* of lengths \[4, 4\], got"):
        mask.check_fits(*rows)


@pytest.mark.parametrize("lengths", [[4, 4], torch.tensor([4, 4])])
def test_calls_refuse_rows_that_lengths_of_python_leave_over(lengths):
    mask = BlockDiagonalMask.from_seqlens(lengths)
    x = torch.randn(1, 9, 1, 8)
    if isinstance(lengths, list):
        for query, key in ((x, x[:, :8]), (x[:, :8], x)):
            with pytest.raises(ValueError, match="for the sequences of this BlockDiagonalMask"):
                memory_efficient_attention(query, key, key, mask)
            with pytest.raises(ValueError, match="for the sequences of this BlockDiagonalMask"):
                memory_efficient_attention_forward(query, key, key, mask)
    else:
        assert (memory_efficient_attention(x, x, x, mask)[:, 8] == 0).all()


def test_lengths_changed_in_place_may_leave_rows_over():
    mask = BlockDiagonalMask.from_seqlens([4, 4])
    mask.q_seqinfo.from_seqlens_inplace([4, 1])
    mask.check_fits(8, 8)


def test_joining_needs_tensors_of_sequences():
    with pytest.raises(ValueError, match="expected one tensor or more to join, got none"):
        BlockDiagonalMask.from_tensor_list([])
    with pytest.raises(ValueError, match="expected one tensor or more to join, got none"):
        BlockDiagonalMask.from_tensor_lists_qkv([], [])
    with pytest.raises(ValueError, match=r"\[B, M, \*\] to join, got \[3\] at 1"):
        BlockDiagonalMask.from_tensor_list([torch.zeros(1, 2), torch.zeros(3)])


@pytest.mark.parametrize("shape", [(1, 3, 2, 8), (1, 3, 4, 7), (1, 3, 8)])
def test_parts_of_other_heads_or_widths_are_named(shape):
    first, other = torch.randn(1, 5, 4, 8), torch.randn(shape)
    parts, others = [first, torch.randn(1, 3, 4, 8)], [first, other]

    def refusal_of(name):
        told = f"expected {name} [B, M, 4, 8] to join, as the first is, got {list(shape)} at 1"
        return pytest.raises(ValueError, match=re.escape(told))

    with refusal_of("tensors"):
        BlockDiagonalMask.from_tensor_list(others)
    with refusal_of("keys"):
        BlockDiagonalMask.from_tensor_lists_qkv(parts, others)
    with refusal_of("values"):
        BlockDiagonalMask.from_tensor_lists_qkv(parts, parts, others)


@pytest.mark.parametrize(
    ("mask_type", "maker"),
    [
        (BlockDiagonalCausalLocalAttentionMask, "make_local_attention"),
        (
            BlockDiagonalCausalLocalAttentionFromBottomRightMask,
            "make_local_attention_from_bottomright",
        ),
    ],
)
def test_lengths_without_the_window_are_refused(mask_type, maker):
    with pytest.raises(TypeError, match=rf"from_seqlens\(\.\.\.\)\.{maker}\(window_size\)"):
        mask_type.from_seqlens([1], [2])
