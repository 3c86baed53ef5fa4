"""What every mechanism promises of masks: padding and the future change nothing, bit for bit."""

import pytest
import torch
from torch.testing import assert_close

from attn_modules import AttentionMask
from mechanism_cases import BATCH, CASES, HEADS, LENGTH, fold, gradients

TIGHT = {"rtol": 1e-9, "atol": 1e-11}  # float64, where only the order of sums may differ
KEPT = 11

KEEP = torch.rand(BATCH, LENGTH, generator=torch.Generator().manual_seed(2)) < 0.7
KEEP[0] = torch.arange(LENGTH) < KEPT
"""[B, M]: one element with padding at its end, the others with holes."""


def cases(description, chosen):
    """Parametrise a test by the cases that `chosen` picks."""
    found = [case for case in CASES if chosen(case)]
    assert found, f"no mechanism {description}"
    return pytest.mark.parametrize("case", found, ids=lambda case: case.id)


every = cases("is there", lambda _: True)
takes_masks = cases("takes masks", lambda case: case.takes_masks)
takes_masks_by_head = cases(
    "takes masks by head",
    lambda case: case.takes_masks and case.has_heads and case.is_alike_for_heads,
)
refuses_masks = cases("refuses masks", lambda case: not case.takes_masks)
is_causal = cases("is causal", lambda case: case.is_causal)


def rows(keep, x):
    """Return `keep` [B, M] as bool that chooses the rows of x [B, H, M, K] or [B, M, K]."""
    return (keep[:, None] if x.dim() == 4 else keep)[..., None].expand(x.shape)


def filled(x, keep, content):
    return x.masked_fill(~rows(keep, x), content)


@every
def test_padding_is_taken(case):
    assert case.constructor.supports_key_padding_mask


@every
@pytest.mark.parametrize("content", [torch.nan, torch.inf, 1e30], ids=["nan", "inf", "huge"])
def test_padding_changes_no_other_row(case, content):
    attention = case.build()
    operands = case.operands()
    expected = attention(*operands, key_padding_mask=KEEP)
    padded = [filled(x, KEEP, content) for x in operands]
    out = attention(*padded, key_padding_mask=KEEP)
    kept = rows(KEEP, out)
    assert torch.equal(out[kept], expected[kept])
    assert out[kept].isfinite().all()


@every
def test_padded_keys_change_no_gradient_and_have_none(case):
    attention = case.build(torch.float64)
    operands = [x.requires_grad_() for x in case.operands(torch.float64)]
    q, k, v = operands
    learned = list(attention.parameters())
    expected = gradients(attention(q, k, v, key_padding_mask=KEEP), *operands, *learned)
    padded = [filled(x.detach(), KEEP, torch.nan).requires_grad_() for x in (k, v)]
    out = attention(q, *padded, key_padding_mask=KEEP)
    found = gradients(out, q, *padded, *learned)
    assert_close(found, expected, **TIGHT)
    for gradient in found[1:3]:
        assert not gradient[~rows(KEEP, gradient)].any()


@cases(
    "treats padding like nothing",
    lambda case: case.is_like_cropped,
)
def test_padding_at_the_end_is_like_none(case):
    attention = case.build(torch.float64)
    operands = [x[:1] for x in case.operands(torch.float64)]
    out = attention(*operands, key_padding_mask=KEEP[:1])[..., :KEPT, :]
    cropped = attention(*(x[..., :KEPT, :] for x in operands))
    assert_close(out, cropped, **TIGHT)


@every
def test_padding_masks_of_each_kind_agree(case):
    attention = case.build()
    operands = case.operands()
    expected = attention(*operands, key_padding_mask=KEEP)
    additive = torch.zeros(KEEP.shape).masked_fill(~KEEP, -torch.inf)
    longer = torch.cat([KEEP, ~KEEP], 1)
    assert torch.equal(attention(*operands, key_padding_mask=additive), expected)
    assert torch.equal(attention(*operands, key_padding_mask=longer), expected)
    if case.has_heads:
        folded = tuple(map(fold, operands))
        by_head = KEEP.repeat_interleave(HEADS, 0)
        for mask in (KEEP, by_head, by_head.unsqueeze(1)):
            out = attention(*folded, key_padding_mask=mask)
            assert_close(out, fold(expected), rtol=1e-5, atol=1e-6)


@every
def test_nothing_but_padding_gives_nothing(case):
    attention = case.build()
    operands = [x.requires_grad_() for x in case.operands()]
    keep = KEEP.clone()
    keep[1] = False
    out = attention(*operands, key_padding_mask=keep)
    assert out[1].isfinite().all()
    assert not out[1].any() or not case.is_zero_without_keys
    expected = attention(*operands, key_padding_mask=KEEP)
    assert torch.equal(out[[0, 2]], expected[[0, 2]])
    gradients_of = torch.autograd.grad(out.square().sum(), operands, allow_unused=True)
    for gradient in gradients_of:
        assert gradient is None or gradient.isfinite().all()


@is_causal
@pytest.mark.parametrize("content", [torch.nan, 7.0], ids=["nan", "other"])
def test_the_future_changes_nothing(case, content):
    attention = case.build()
    operands = case.operands()
    expected = attention(*operands)
    for now in (1, 3, 8, LENGTH - 1):
        changed = [x.clone() for x in operands]
        for x in changed:
            x[..., now:, :] = content
        out = attention(*changed)
        assert torch.equal(out[..., :now, :], expected[..., :now, :])


@is_causal
def test_the_past_sends_the_future_no_gradient(case):
    attention = case.build()
    operands = [x.requires_grad_() for x in case.operands()]
    out = attention(*operands)
    for now in (1, 3, 8, LENGTH - 1):
        past = out[..., :now, :].square().sum()
        for gradient in torch.autograd.grad(past, operands, retain_graph=True):
            assert not gradient[..., now:, :].any()


def drawn_mask(*shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.7
    return mask | torch.eye(LENGTH, dtype=torch.bool)


@takes_masks_by_head
def test_masks_fall_to_their_batch_element_and_head(case):
    attention = case.build(torch.float64)
    operands = case.operands(torch.float64)
    mask = drawn_mask(BATCH, HEADS, LENGTH, LENGTH)
    out = attention(*operands, att_mask=mask)
    for element in range(BATCH):
        for head in range(HEADS):
            place = (slice(element, element + 1), slice(head, head + 1))
            alone = attention(*(x[place] for x in operands), att_mask=mask[element, head])
            assert_close(alone, out[place], **TIGHT)
    folded = attention(*map(fold, operands), att_mask=fold(mask))
    assert_close(folded, fold(out), **TIGHT)


@takes_masks_by_head
def test_masks_of_batch_elements_hold_for_all_their_heads(case):
    attention = case.build(torch.float64)
    operands = case.operands(torch.float64)
    mask = drawn_mask(BATCH, LENGTH, LENGTH)
    expected = attention(*operands, att_mask=mask[:, None].expand(-1, HEADS, -1, -1))
    assert_close(attention(*operands, att_mask=mask), expected, **TIGHT)
    assert_close(attention(*map(fold, operands), att_mask=mask), fold(expected), **TIGHT)


@takes_masks
def test_masks_of_each_kind_agree(case):
    attention = case.build()
    operands = case.operands()
    mask = drawn_mask(LENGTH, LENGTH)
    larger = torch.nn.functional.pad(mask, (0, 3, 0, 3), value=True)
    expected = attention(*operands, att_mask=mask)
    assert not torch.equal(expected, attention(*operands))
    for same in (AttentionMask.from_bool(mask), AttentionMask.from_bool(mask).values, larger):
        assert_close(attention(*operands, att_mask=same), expected, rtol=1e-5, atol=1e-6)


@takes_masks
def test_masks_and_padding_hold_together(case):
    attention = case.build()
    operands = case.operands()
    mask = drawn_mask(LENGTH, LENGTH)
    for kind in (mask, AttentionMask.from_bool(mask)):
        out = attention(*operands, att_mask=kind, key_padding_mask=KEEP)
        both = attention(*operands, att_mask=mask & KEEP[:, None])
        kept = rows(KEEP, out)
        assert_close(out[kept], both[kept], rtol=1e-5, atol=1e-6)


@takes_masks
def test_rows_that_see_nothing_give_nothing(case):
    attention = case.build()
    operands = [x.requires_grad_() for x in case.operands()]
    mask = drawn_mask(LENGTH, LENGTH)
    mask[5] = False
    out = attention(*operands, att_mask=mask)
    assert out.isfinite().all()
    assert not out[..., 5, :].any() or not case.is_zero_without_keys
    assert all(gradient.isfinite().all() for gradient in gradients(out, *operands))


@refuses_masks
def test_masks_that_cannot_be_honoured_are_refused(case):
    with pytest.raises(NotImplementedError, match="expected no att_mask"):
        case.build()(*case.operands(), att_mask=drawn_mask(LENGTH, LENGTH))
