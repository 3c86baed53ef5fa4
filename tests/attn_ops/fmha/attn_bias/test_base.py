"""What every mask can do: materialize, take a bias, be refused if it means nothing."""

import copy
import pickle

import pytest
import torch

from attn_ops.fmha.attn_bias import (
    AlibiBias,
    AttentionBias,
    AttentionMask,
    BiasedMask,
    BlockDiagonalMask,
    BlockSparseMask,
    LowerTriangularMask,
    PagedBlockDiagonalPaddedKeysMask,
    RelativePositionBias,
)


def test_materialize_expands_and_casts():
    mask = LowerTriangularMask().materialize((2, 3, 4, 5), dtype=torch.bfloat16, device="meta")
    assert mask.shape == (2, 3, 4, 5)
    assert mask.dtype == torch.bfloat16
    assert mask.device.type == "meta"


@pytest.mark.parametrize(
    ("mask", "shape"),
    [
        (LowerTriangularMask(), (3, 4)),
        (BlockSparseMask.from_lists([[0], [1, 0]], block_size=2), (4, 4)),
        (
            PagedBlockDiagonalPaddedKeysMask.from_seqlens(
                [1, 1], [3, 1], torch.tensor([[2, 0], [1, 3]], dtype=torch.int32), page_size=2
            ),
            (2, 8),
        ),
    ],
    ids=["band", "blocks", "pages"],
)
def test_materialize_and_pictures_heed_no_default_device(mask, shape):
    with torch.device("meta"):
        materialized, image = mask.materialize(shape), mask._repr_svg_()
    assert materialized.device.type == "cpu"
    assert torch.equal(materialized, mask.materialize(shape))
    assert image == mask._repr_svg_()


def test_materialize_repeats_instead_of_copying():
    assert LowerTriangularMask().materialize((2, 3, 4, 5)).stride()[:2] == (0, 0)


def test_materialize_needs_two_axes():
    with pytest.raises(ValueError, match=r"shape \[..., Mq, Mkv\]"):
        LowerTriangularMask().materialize((3,))


def test_base_class_refuses():
    with pytest.raises(NotImplementedError, match="AttentionBias does not say"):
        AttentionBias().materialize((2, 2))


def test_former_name_of_the_base_class():
    assert AttentionMask is AttentionBias


def test_tensor_joins_packed_sequences_by_rows_of_memory():
    mask = BlockDiagonalMask.from_seqlens([2, 3], [4, 1])
    tensor = torch.randn(1, 6, 5, 5)
    biased = mask.add_bias(tensor)
    assert type(biased) is BiasedMask
    assert biased.HOLDS_DENSE_TENSOR
    shape = (1, 6, 5, 5)
    assert torch.equal(biased.materialize(shape), mask.materialize(shape) + tensor)
    assert biased.natural_shape() == (5, 5)


def test_keep_mask_hides_more_keys():
    keep = torch.rand(5, 5) > 0.5
    biased = BlockDiagonalMask.from_seqlens([2, 3]).make_causal().add_bias(keep)
    seen = BlockDiagonalMask.from_seqlens([2, 3]).make_causal().materialize((5, 5)) == 0
    assert torch.equal(biased.materialize((5, 5)) == 0, seen & keep)


def test_biases_of_each_kind_add_up():
    slopes, table, tensor = torch.rand(2), torch.randn(2, 5), torch.randn(1, 2, 4, 4)
    mask = LowerTriangularMask().add_bias(tensor).add_bias(AlibiBias(slopes))
    mask = mask.add_bias(RelativePositionBias(table))
    distance = torch.arange(4) - torch.arange(4)[:, None]
    expected = (
        tensor
        - slopes[:, None, None] * distance.abs()
        + table[:, distance.clamp(-2, 2) + 2]
        + LowerTriangularMask().materialize((4, 4))
    )
    torch.testing.assert_close(mask.materialize((1, 2, 4, 4)), expected)


def test_biased_paged_mask_materializes_memory_as_its_mask_does():
    tables = torch.tensor([[2, 0]], dtype=torch.int32)
    mask = PagedBlockDiagonalPaddedKeysMask.from_seqlens([1], [3], tables, page_size=2)
    biased = mask.add_bias(torch.ones(1, 6))
    assert torch.equal(biased.materialize((1, 4)), mask.materialize((1, 4)) + 1)


def test_biased_mask_moves_with_its_bias():
    biased = BlockDiagonalMask.from_seqlens([2, 3]).add_bias(torch.zeros(5, 5)).to("meta")
    assert isinstance(biased, BiasedMask)
    assert biased.bias.device.type == "meta"
    assert biased.mask.q_seqinfo.seqstart.device.type == "meta"


def test_alibi_is_no_dense_tensor():
    mask = BlockDiagonalMask.from_seqlens([2]).add_bias(AlibiBias.for_heads(2))
    assert not mask.HOLDS_DENSE_TENSOR


@pytest.mark.parametrize(
    ("bias", "name"),
    [
        (torch.zeros(2, 2), "tensor"),
        (AlibiBias(torch.ones(1)), "AlibiBias"),
        (RelativePositionBias(torch.ones(1, 3)), "RelativePositionBias"),
    ],
)
def test_second_bias_of_a_kind_is_refused(bias, name):
    mask = BlockDiagonalMask.from_seqlens([2]).add_bias(bias)
    with pytest.raises(ValueError, match=f"expected a mask without a {name}, got one"):
        mask.add_bias(bias)


def test_second_tensor_on_a_causal_mask_is_refused():
    with pytest.raises(ValueError, match="without a tensor"):
        LowerTriangularMask().add_bias(torch.zeros(2, 2)).add_bias(torch.zeros(2, 2))


@pytest.mark.parametrize("bias", [None, 1.0, LowerTriangularMask()])
def test_bias_must_be_one(bias):
    with pytest.raises(TypeError, match="expected a tensor, an AlibiBias or"):
        LowerTriangularMask().add_bias(bias)


def test_methods_of_the_mask_are_found_at_the_mask():
    biased = BlockDiagonalMask.from_seqlens([2]).add_bias(torch.zeros(2, 2))
    with pytest.raises(AttributeError, match=r"no attribute 'split'; use \.mask\.split"):
        _ = biased.split
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'$"):
        _ = biased.nothing
    copied = pickle.loads(pickle.dumps(copy.deepcopy(biased)))  # noqa: S301
    assert copied.mask.k_seqinfo.seqstart_py == [0, 2]


def test_biased_mask_fits_what_its_mask_fits():
    biased = BlockDiagonalMask.from_seqlens([2]).add_bias(torch.zeros(2, 2))
    biased.check_fits(2, 2)
    with pytest.raises(ValueError, match="expected query with 2 rows"):
        biased.check_fits(3, 2)


def test_masks_without_sequences_fit_all():
    LowerTriangularMask().check_fits(3, 9)
