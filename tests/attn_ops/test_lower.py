"""Each mask lowers to parts that mean what its materialized form shows."""

import pytest
import torch

from attn_ops import _lower, memory_efficient_attention
from attn_ops.fmha import attn_bias as masks
from attn_ops.mask import UNBOUNDED, Band, MaskSpec
from reference import mask_spec

HEADS = 2


def one_of_each_class():
    """Return a mask of every class, with Mq and Mkv in memory and the shape it materializes."""
    q, kv, longer = [2, 0, 3, 1], [4, 1, 2, 0], [4, 1, 3, 1]
    packed = masks.BlockDiagonalMask.from_seqlens(q, longer)
    padded = (q, 5, kv)
    tables = torch.tensor([[3, 0, 9], [1, 1, 1], [7, 2, 4], [5, 6, 8]], dtype=torch.int32)
    paged = (q, kv, tables, 2)
    gaps = ([1, 6, 8, 12, 14], kv)
    offsets = ([1, 0, 3, 2], kv, tables, 2)
    free, packed_shape, padded_shape = (5, 7), (6, 9), (6, 20)
    paged_shape, gappy_shape = (6, 20), (6, 14)
    found = [
        (masks.LowerTriangularMask(), free),
        (masks.LowerTriangularMask().add_bias(torch.randn(1, HEADS, 5, 7)), free),
        (masks.LowerTriangularFromBottomRightMask(), free),
        (masks.LowerTriangularFromBottomRightMask().make_local_attention(2), free),
        (masks.LocalAttentionFromBottomRightMask(1, 2), free),
        (packed, packed_shape),
        (packed.make_causal(), packed_shape),
        (packed.make_causal_from_bottomright(), packed_shape),
        (packed.make_local_attention(2), packed_shape),
        (packed.make_local_attention_from_bottomright(2), packed_shape),
        (masks.BlockDiagonalPaddedKeysMask.from_seqlens(*padded), padded_shape),
        (masks.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(*padded), padded_shape),
        (
            masks.BlockDiagonalCausalLocalAttentionPaddedKeysMask.from_seqlens_local(*padded, 2),
            padded_shape,
        ),
        (
            masks.BlockDiagonalLocalAttentionPaddedKeysMask.from_seqlens_local(*padded, 1, 1),
            padded_shape,
        ),
        (masks.BlockDiagonalGappyKeysMask.from_seqlens(q, *gaps), gappy_shape),
        (masks.BlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens(q, *gaps), gappy_shape),
        (
            masks.BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask.from_seqlens_local_gappy(
                q, *gaps, 1, 1
            ),
            gappy_shape,
        ),
        (masks.PagedBlockDiagonalPaddedKeysMask.from_seqlens(*paged), paged_shape),
        (masks.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(*paged), paged_shape),
        (
            masks.PagedBlockDiagonalCausalLocalPaddedKeysMask.from_seqlens_local(*paged, 2),
            paged_shape,
        ),
        (masks.PagedBlockDiagonalGappyKeysMask.from_seqlens(q, *offsets), paged_shape),
        (
            masks.PagedBlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens(q, *offsets),
            paged_shape,
        ),
        (masks.BlockSparseMask.from_lists([[0], [1, 3], [2]], 2, causal=True), free),
        (masks.AlibiBias(torch.rand(HEADS)), free),
        (masks.RelativePositionBias(torch.randn(HEADS, 5)), free),
        (packed.add_bias(masks.AlibiBias(torch.rand(HEADS))), packed_shape),
    ]
    return [pytest.param(mask, shape, id=type(mask).__name__) for mask, shape in found]


EACH_CLASS = one_of_each_class()


def same_tensors(first, second):
    """Return whether two descriptions hold the very same tensors."""
    return vars(first).keys() == vars(second).keys() and all(
        one is other or one == other
        for one, other in zip(vars(first).values(), vars(second).values(), strict=True)
    )


def test_every_class_is_here():
    tested = {type(parameter.values[0]) for parameter in EACH_CLASS}
    assert tested == _lower.MASK_CLASSES


@pytest.mark.parametrize(("mask", "shape"), EACH_CLASS)
def test_parts_are_the_materialized_mask(mask, shape):
    assert _lower.can_lower(mask)
    spec = _lower.lower(mask)
    asked = shape if spec.pages is None else (shape[0], spec.pages.block_table.numel() * 2)
    materialized = mask.materialize((1, HEADS, *asked), dtype=torch.float64)
    assert torch.equal(mask_spec.materialize(spec, 1, HEADS, *shape), materialized)


@pytest.mark.parametrize(("mask", "shape"), EACH_CLASS)
def test_lowering_makes_no_tensors(mask, shape):
    del shape
    first, second = _lower.lower(mask), _lower.lower(mask)
    for part in ("sequences", "pages", "blocks", "relative"):
        if getattr(first, part) is not None:
            assert same_tensors(getattr(first, part), getattr(second, part))
    assert first.bias is second.bias


@pytest.mark.parametrize(("mask", "shape"), EACH_CLASS)
def test_integers_are_int32(mask, shape):
    del shape
    spec = _lower.lower(mask)
    for part in (spec.sequences, spec.pages, spec.blocks):
        tensors = [] if part is None else [t for t in vars(part).values() if torch.is_tensor(t)]
        assert all(tensor.dtype == torch.int32 for tensor in tensors)


def test_longest_sequences_are_told():
    sequences = _lower.lower(masks.BlockDiagonalMask.from_seqlens([2, 5], [9, 1])).sequences
    assert (sequences.max_q_len, sequences.max_k_len) == (5, 9)
    padded = masks.BlockDiagonalPaddedKeysMask.from_seqlens([2, 5], 9, [1, 2])
    assert _lower.lower(padded).sequences.max_k_len == 9


def test_no_bias_and_a_tensor_bound_nothing():
    assert _lower.lower(None) == MaskSpec(Band(UNBOUNDED, UNBOUNDED))
    assert _lower.lower(torch.zeros(1)) == MaskSpec()


def test_tensor_of_a_mask_is_the_users_own():
    tensor = torch.randn(1, 1, 4, 4, requires_grad=True)
    assert _lower.lower(masks.LowerTriangularMask().add_bias(tensor)).bias is tensor
    packed = masks.BlockDiagonalMask.from_seqlens([4]).add_bias(tensor)
    assert _lower.lower(packed).bias is tensor


class Unknown(masks.LowerTriangularMask):
    """A subclass from elsewhere, which may mean anything."""


@pytest.mark.parametrize(
    "attn_bias",
    [
        "causal",
        masks.AttentionBias(),
        Unknown(),
        Unknown().add_bias(masks.AlibiBias.for_heads(2)),
    ],
    ids=lambda bias: type(bias).__name__,
)
def test_unknown_kinds_do_not_lower(attn_bias):
    assert not _lower.can_lower(attn_bias)


def test_calls_refuse_an_unknown_kind_under_a_bias():
    attn_bias = Unknown().add_bias(masks.AlibiBias.for_heads(2))
    x = torch.randn(1, 4, 2, 8)
    with pytest.raises(NotImplementedError, match="BiasedMask"):
        memory_efficient_attention(x, x, x, attn_bias)


def test_known_kinds_lower():
    assert _lower.can_lower(None)
    assert _lower.can_lower(torch.zeros(1))
    assert _lower.can_lower(masks.LowerTriangularMask())


def numbers_of(spec):
    """Return everything a description holds, as tensors that a compiled graph can return."""
    band = torch.tensor([min(spec.band.left, 99), min(spec.band.right, 99), spec.band.anchor])
    parts = (spec.sequences, spec.pages, spec.blocks, spec.relative)
    tensors = [
        value
        for part in parts
        if part is not None
        for value in vars(part).values()
        if torch.is_tensor(value)
    ]
    return [band, *[tensor + 0 for tensor in tensors]]


@pytest.mark.parametrize(("mask", "shape"), EACH_CLASS)
def test_masks_enter_compiled_regions(mask, shape):
    del shape
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda mask: numbers_of(_lower.lower(mask)) if _lower.can_lower(mask) else None,
        fullgraph=True,
        backend="eager",
    )
    assert all(map(torch.equal, compiled(mask), numbers_of(_lower.lower(mask))))


TABLES = torch.tensor([[3, 0], [1, 2]], dtype=torch.int32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: masks.LowerTriangularFromBottomRightMask().make_local_attention(2),
        lambda: masks.BlockDiagonalMask.from_seqlens([2, 3], [4, 5]).make_causal_from_bottomright(),
        lambda: masks.BlockDiagonalMask.from_seqlens([2, 3]).make_local_attention(2).to("cpu"),
        lambda: masks.BlockDiagonalMask.from_seqlens(torch.tensor([2, 3])),
        lambda: masks.BlockDiagonalMask.from_tensor_list([torch.zeros(2, 3, 1)])[
            0
        ].make_local_attention(3),
        lambda: masks.BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], 4, torch.tensor([2, 3])),
        lambda: masks.BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], 4, [2, 3]).make_paged(
            TABLES, 2, masks.PagedBlockDiagonalPaddedKeysMask
        ),
        lambda: masks.BlockDiagonalGappyKeysMask.from_seqlens([1, 1], [0, 5, 8], [2, 3]).make_paged(
            TABLES, 2, 4, masks.PagedBlockDiagonalGappyKeysMask
        ),
        lambda: masks.BlockSparseMask.local_and_global(4, 2, global_blocks=1),
        lambda: masks.BlockDiagonalMask.from_seqlens([2]).add_bias(masks.AlibiBias.for_heads(2)),
    ],
)
def test_masks_are_made_in_compiled_regions(make):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda: numbers_of(_lower.lower(make())), fullgraph=True, backend="eager"
    )
    assert all(map(torch.equal, compiled(), numbers_of(_lower.lower(make()))))


def test_compiled_region_reads_lengths_changed_in_place():
    mask = masks.BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], 8, [5, 5])
    compiled = torch.compile(
        lambda mask: _lower.lower(mask).sequences.k_len + 0, fullgraph=True, backend="eager"
    )
    assert compiled(mask).tolist() == [5, 5]
    mask.k_seqinfo.from_seqlens_padded_inplace([2, 3])
    assert compiled(mask).tolist() == [2, 3]


def test_compiled_region_joins_tensors_of_any_lengths():
    def starts(tensors):
        mask, joined = masks.BlockDiagonalMask.from_tensor_list(tensors)
        parts = mask.make_causal().split(joined)
        return _lower.lower(mask).sequences.q_start + 0, parts

    compiled = torch.compile(starts, fullgraph=True, dynamic=True, backend="eager")
    for lengths in ((3, 6, 2), (4, 7, 5)):
        tensors = [torch.randn(1, length, 2) for length in lengths]
        q_start, parts = compiled(tensors)
        assert q_start.tolist() == [0, lengths[0], lengths[0] + lengths[1], sum(lengths)]
        assert all(map(torch.equal, parts, tensors))
