"""Local attention against its definition."""

import pytest
import torch

from attn_modules import LocalAttention
from masked_modules import LENGTH, MASKS, PADDING, assert_attends, make_inputs
from reference.modules.windows_and_tokens import local_keep

FORMS = [(1, False), (5, False), (4, True), (5, True), (31, False), (40, True)]


@pytest.mark.parametrize(("window_size", "causal"), FORMS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
def test_output_and_gradients(window_size, causal, mask, padding):
    attention = LocalAttention(0.0, causal, window_size)
    keep = local_keep(LENGTH, window_size, causal=causal)
    assert_attends(attention, keep, MASKS[mask], padding)
    is_told_apart = mask in ("none", "bool", "additive")
    assert_attends(attention, keep, MASKS[mask], padding, is_folded=is_told_apart)


@pytest.mark.parametrize("length", [0, 1, 2, 6])
def test_short_inputs(length):
    assert_attends(LocalAttention(window_size=5), local_keep(length, 5, causal=False))


def test_forcing_sparsity_changes_nothing():
    inputs = make_inputs()
    forced = LocalAttention(force_sparsity=True)
    assert torch.equal(forced(*inputs), LocalAttention()(*inputs))


@pytest.mark.parametrize("content", [torch.nan, torch.inf, 1e30, 3.0])
def test_the_future_changes_nothing(content):
    attention = LocalAttention(causal=True, window_size=3)
    inputs = make_inputs()
    expected = attention(*inputs)
    for now in (1, 7, LENGTH - 1):
        changed = [x.clone() for x in inputs]
        for x in changed:
            x[:, :, now:] = content
        assert torch.equal(attention(*changed)[:, :, :now], expected[:, :, :now])


def test_what_is_outside_the_window_changes_nothing():
    inputs = make_inputs(64)
    expected = LocalAttention(window_size=5)(*inputs)
    changed = [x.clone() for x in inputs]
    for x in changed:
        x[:, :, 30:] = torch.nan
    out = LocalAttention(window_size=5)(*changed)
    assert torch.equal(out[:, :, :28], expected[:, :, :28])
    assert out[:, :, 28:].isnan().all()


def test_dropout_drops_probabilities():
    q, k, _ = make_inputs(32)
    v = torch.eye(32, dtype=torch.float64).expand(2, 3, 32, 32)  # the output is the weights
    attention = LocalAttention(dropout=0.25, window_size=9)
    weights = attention.eval()(q, k, v)
    torch.manual_seed(0)
    dropped = attention.train()(q, k, v)
    seen = weights > 0
    assert 0.2 < (dropped[seen] == 0).double().mean() < 0.3
    assert not dropped[~seen].any()
    kept = dropped > 0
    torch.testing.assert_close(dropped[kept], (weights / 0.75)[kept])


@pytest.mark.parametrize(("window_size", "causal"), [(4, False), (0, False), (0, True), (-3, True)])
def test_windows_that_are_none_are_refused(window_size, causal):
    with pytest.raises(ValueError, match=f"window_size.* got {window_size}"):
        LocalAttention(causal=causal, window_size=window_size)


def test_cross_attention_is_refused():
    q, k, v = make_inputs()
    with pytest.raises(ValueError, match="as many keys as queries"):
        LocalAttention()(q[:, :, :5], k, v)
