"""The mask object: how it is made, cropped, moved and combined."""

import pytest
import torch

from attn_modules import AttentionMask


def test_two_axes_are_held_as_three():
    mask = AttentionMask(torch.zeros(3, 5))
    assert mask.shape == (1, 3, 5)
    assert (mask.seq_len, mask.to_seq_len, mask.ndim) == (3, 5, 3)
    assert (mask.dtype, mask.device.type, mask.is_sparse) == (torch.float32, "cpu", False)


@pytest.mark.parametrize("shape", [(4,), (1, 1, 1, 4, 4)])
def test_other_numbers_of_axes_are_refused(shape):
    with pytest.raises(ValueError, match="expected \\[Mq, Mkv\\]"):
        AttentionMask(torch.zeros(shape))


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2, requires_grad=True)]
)
def test_what_is_no_constant_number_is_refused(mask):
    with pytest.raises(ValueError, match="floating-point tensor without a gradient"):
        AttentionMask(mask)


def test_bool_and_multiplicative_agree():
    keep = torch.tensor([[True, False], [False, True]])
    from_bool = AttentionMask.from_bool(keep)
    assert torch.equal(from_bool.values[0], torch.tensor([[0, -torch.inf], [-torch.inf, 0]]))
    from_numbers = AttentionMask.from_multiplicative(torch.tensor([[3.0, 0.0], [0.0, -1.0]]))
    assert torch.equal(from_numbers.values, from_bool.values)
    assert torch.equal(from_bool.to_bool()[0], keep)
    with pytest.raises(ValueError, match="use from_bool"):
        AttentionMask.from_multiplicative(keep)
    with pytest.raises(ValueError, match="expected a bool tensor"):
        AttentionMask.from_bool(torch.ones(2, 2))


@pytest.mark.parametrize("anchor", ["top-left", "bottom-right"])
@pytest.mark.parametrize(("queries", "keys"), [(3, 3), (2, 5), (5, 2), (3, 0)])
def test_causal_mask_keeps_what_is_not_later(queries, keys, anchor):
    mask = AttentionMask.make_causal(queries, keys, anchor=anchor)
    shift = keys - queries if anchor == "bottom-right" else 0
    expected = [[j <= i + shift for j in range(keys)] for i in range(queries)]
    assert mask.to_bool()[0].tolist() == expected
    assert mask.is_causal


def test_causal_mask_is_square_unless_told():
    assert AttentionMask.make_causal(4, dtype=torch.bfloat16).shape == (1, 4, 4)


def test_crop_is_a_view_that_stays_causal():
    mask = AttentionMask.make_causal(6)
    crop = mask.make_crop(4, 3)
    assert torch.equal(crop.values, mask.values[:, :4, :3])
    assert crop.values.data_ptr() == mask.values.data_ptr()
    assert crop.is_causal
    assert mask.make_crop(2).shape == (1, 2, 2)
    with pytest.raises(ValueError, match="at most 6 queries and 6 keys, got 7 and 2"):
        mask.make_crop(7, 2)


def test_subclasses_stay_themselves():
    class Named(AttentionMask):
        pass

    assert type(Named.make_causal(4).make_crop(2)) is Named
    assert type(Named.make_causal(4).to(dtype=torch.float64)) is Named


def test_sum_adds_values():
    causal, numbers = AttentionMask.make_causal(3), AttentionMask(torch.randn(2, 3, 3))
    both = causal + numbers
    assert torch.equal(both.values, causal.values + numbers.values)
    assert not both.is_causal
    with pytest.raises(TypeError):
        causal + torch.zeros(3, 3)


def test_conjunction_keeps_what_both_keep():
    causal = AttentionMask.make_causal(3)
    keep = torch.tensor([True, False, True]).expand(3, 3)
    for other in (keep, AttentionMask.from_bool(keep)):
        assert torch.equal((causal & other).to_bool()[0], torch.ones(3, 3).tril().bool() & keep)
    with pytest.raises(ValueError, match="use `\\+`"):
        causal & AttentionMask(torch.randn(3, 3))


def test_masks_of_batch_elements_hold_for_all_heads_of_another():
    of_elements = AttentionMask.from_bool(torch.rand(2, 3, 3) < 0.5)
    of_heads = AttentionMask.from_bool(torch.rand(2, 2, 3, 3) < 0.5)
    expected = of_elements.to_bool()[:, None] & of_heads.to_bool()
    for both in (of_elements & of_heads, of_heads & of_elements, of_heads + of_elements):
        assert torch.equal(both.to_bool(), expected)


def test_moving_to_the_same_place_makes_nothing_new():
    mask = AttentionMask.make_causal(3)
    assert mask.to(device="cpu") is mask
    moved = mask.to(dtype=torch.float64)
    assert moved.dtype == torch.float64
    assert moved.is_causal


def test_causal_masks_and_crops_without_a_meaning_are_refused():
    with pytest.raises(ValueError, match="one of top-left, bottom-right, got 'bottom_right'"):
        AttentionMask.make_causal(2, 4, anchor="bottom_right")
    with pytest.raises(ValueError, match="of 0 or more, got -1 and -1"):
        AttentionMask.make_causal(-1)
    with pytest.raises(ValueError, match="of 0 or more, got 2 and -1"):
        AttentionMask.make_causal(4).make_crop(2, -1)
