"""What every mechanism promises of its results: repeatable, row by row, in any layout and dtype."""

import pytest
import torch
from torch.testing import assert_close

from attn_modules import ATTENTION_REGISTRY
from mechanism_cases import BATCH, CASES, HEADS, LENGTH, fold, gradients

every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
with_heads = pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.has_heads],
    ids=lambda case: case.id,
)
between_lengths = pytest.mark.parametrize(
    "case",
    [
        case
        for case in CASES
        if case.takes_any_lengths and not case.constructor.requires_same_k_q_dimensions
    ],
    ids=lambda case: case.id,
)
TIGHT = {"rtol": 1e-9, "atol": 1e-11}  # float64, where only the order of sums may differ


def test_every_registered_mechanism_has_a_case():
    assert {case.name for case in CASES} == set(ATTENTION_REGISTRY)


@every
def test_evaluation_repeats_its_bits(case):
    attention, operands = case.build(), case.operands()
    first = attention(*operands)
    torch.manual_seed(99)
    assert torch.equal(attention(*operands), first)
    assert first.isfinite().all()


@every
def test_batch_elements_know_nothing_of_each_other(case):
    attention = case.build(torch.float64)
    operands = case.operands(torch.float64)
    order = torch.tensor([2, 0, 1])
    out = attention(*operands)
    assert_close(attention(*(x[order] for x in operands)), out[order], **TIGHT)
    for element in range(BATCH):
        alone = attention(*(x[element : element + 1] for x in operands))
        assert_close(alone, out[element : element + 1], **TIGHT)


@every
@pytest.mark.parametrize(("batch", "length"), [(0, LENGTH), (BATCH, 0), (0, 0)])
def test_nothing_gives_nothing(case, batch, length):
    attention = case.build()
    operands = [x[:batch].requires_grad_() for x in case.operands(queries=length)]
    keep = torch.ones(batch, LENGTH, dtype=torch.bool)
    for inputs in (operands, list(map(fold, operands)) if case.has_heads else operands):
        out = attention(*inputs, key_padding_mask=keep)
        assert out.shape == inputs[0].shape
        assert not any(gradient.any() for gradient in gradients(out, *operands))


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.takes_nan], ids=lambda case: case.id
)
def test_nan_stays_in_its_batch_element(case):
    attention = case.build()
    operands = case.operands()
    expected = attention(*operands)
    for x in operands:
        x[1] = torch.nan
    out = attention(*operands)
    assert torch.equal(out[[0, 2]], expected[[0, 2]])


@with_heads
def test_folded_heads_give_what_they_give_apart(case):
    attention = case.build(torch.float64)
    operands = case.operands(torch.float64)
    out = attention(*operands)
    assert_close(attention(*map(fold, operands)), fold(out), **TIGHT)


@every
def test_any_strides_will_do(case):
    attention = case.build(torch.float64)
    operands = case.operands(torch.float64)
    out = attention(*operands)
    strided = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in operands]
    assert_close(attention(*strided), out, **TIGHT)
    spaced = [x.repeat_interleave(2, -2)[..., ::2, :] for x in operands]
    assert_close(attention(*spaced), out, **TIGHT)


@every
def test_gradients_reach_whatever_counts(case):
    attention = case.build(torch.float64)
    operands = [x.requires_grad_() for x in case.operands(torch.float64)]
    learned = [x for x in attention.parameters() if _shift_counts(attention, operands, x)]
    out = attention(*operands)
    counting = [x for x in operands if _counts(attention, operands, x)]
    for gradient in gradients(out, *counting, *learned):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def _shift_counts(attention, operands, parameter):
    """Return whether all of a parameter one up changes the result: a score's bias does not."""
    with torch.no_grad():
        before = attention(*operands)
        parameter += 1
        after = attention(*operands)
        parameter -= 1
        return not torch.allclose(before, after)


def _counts(attention, operands, x):
    """Return whether another `x` changes the result."""
    with torch.no_grad():
        changed = [x.flip(-1) if y is x else y for y in operands]
        return not torch.equal(attention(*changed), attention(*operands))


@every
def test_dropout_acts_in_training_alone(case):
    operands = case.operands()
    without = case.build(dropout=0.0)
    attention = case.build(dropout=0.4)
    assert torch.equal(attention(*operands), without(*operands))
    attention.train()
    torch.manual_seed(0)
    first = attention(*operands)
    assert not torch.equal(attention(*operands), first)
    assert not torch.equal(attention.eval()(*operands), first)


@every
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)], ids=["half", "bfloat16"]
)
def test_short_dtypes_give_their_own_and_come_near(case, dtype, tolerance):
    attention = case.build(dtype)
    exact = case.build()
    exact.load_state_dict(attention.state_dict())
    operands = [x.requires_grad_() for x in case.operands(dtype)]
    out = attention(*operands)
    assert out.dtype == dtype
    expected = exact(*(x.float() for x in operands))
    assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)
    out.sum().backward()
    assert all(x.grad is None or x.grad.isfinite().all() for x in operands)


@every
@pytest.mark.parametrize("which", [1, 2], ids=["k", "v"])
def test_inputs_of_several_dtypes_are_refused(case, which):
    operands = list(case.operands())
    operands[which] = operands[which].double()
    with pytest.raises(ValueError, match=r"of one dtype|as the weights are"):
        case.build()(*operands)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_autocast_comes_near(case, dtype):
    attention = case.build()
    operands = [x.to(dtype).requires_grad_() for x in case.operands()]
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(*operands)
    assert_close(out.float(), attention(*(x.float() for x in operands)), rtol=0.1, atol=0.1)
    out.float().sum().backward()
    assert all(x.grad is None or x.grad.isfinite().all() for x in operands)


@between_lengths
def test_queries_and_keys_of_other_lengths(case):
    attention = case.build(torch.float64)
    for queries, keys in ((7, 16), (16, 7)):
        operands = case.operands(torch.float64, queries, keys)
        out = attention(*operands)
        assert out.isfinite().all()
        assert out.shape == operands[0].shape
        if case.has_heads:
            assert_close(attention(*map(fold, operands)), fold(out), **TIGHT)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.has_heads and case.is_alike_for_heads],
    ids=lambda case: case.id,
)
def test_heads_know_nothing_of_each_other(case):
    attention = case.build(torch.float64)
    operands = case.operands(torch.float64)
    out = attention(*operands)
    for head in range(HEADS):
        alone = attention(*(x[:, head : head + 1] for x in operands))
        assert_close(alone, out[:, head : head + 1], **TIGHT)
