"""Global attention against its definition."""

import pytest
import torch

from allocated_elements import AllocatedElements
from attn_modules import GlobalAttention
from masked_modules import LENGTH, MASKS, PADDING, assert_attends, make_inputs
from reference.modules.windows_and_tokens import global_keep

TOKENS = {
    "none": [],
    "first": [0],
    "some": [2, 3, 9],
    "last": [LENGTH - 1],
    "all": list(range(LENGTH)),
}


def marked(tokens, length=LENGTH):
    is_global = torch.zeros(length, 1, dtype=torch.bool)
    is_global[tokens] = True
    return is_global


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
def test_output_and_gradients(causal, tokens, mask, padding):
    is_global = marked(TOKENS[tokens])
    attention = GlobalAttention(0.0, is_global, causal)
    keep = global_keep(is_global.squeeze(1).tolist(), causal=causal)
    assert_attends(attention, keep, MASKS[mask], padding)
    is_told_apart = mask in ("none", "bool", "additive")
    assert_attends(attention, keep, MASKS[mask], padding, is_folded=is_told_apart)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 9])
def test_shorter_inputs_crop_the_mask(causal, length):
    is_global = marked(TOKENS["some"])
    keep = global_keep(is_global.squeeze(1).tolist(), causal=causal)[:length, :length]
    assert_attends(GlobalAttention(0.0, is_global, causal), keep)


def test_a_mask_of_one_axis_means_the_same():
    is_global, inputs = marked(TOKENS["some"]), make_inputs()
    expected = GlobalAttention(0.0, is_global)(*inputs)
    assert torch.equal(GlobalAttention(0.0, is_global.squeeze(1))(*inputs), expected)
    assert torch.equal(GlobalAttention(0.0, is_global, force_sparsity=True)(*inputs), expected)


@pytest.mark.parametrize("content", [torch.nan, torch.inf, 1e30, 3.0])
def test_the_future_changes_nothing(content):
    attention = GlobalAttention(0.0, marked(TOKENS["some"]), causal=True)
    inputs = make_inputs()
    expected = attention(*inputs)
    for now in (1, 3, 9, LENGTH - 1):
        changed = [x.clone() for x in inputs]
        for x in changed:
            x[:, :, now:] = content
        assert torch.equal(attention(*changed)[:, :, :now], expected[:, :, :now])


@pytest.mark.parametrize("causal", [False, True])
def test_memory_grows_with_the_number_of_global_tokens(causal):
    length = 1024
    attention = GlobalAttention(0.0, marked([3, 500], length), causal)
    inputs = [torch.randn(1, 1, length, 8, requires_grad=True) for _ in range(3)]
    with AllocatedElements() as allocated:
        attention(*inputs).sum().backward()
    assert allocated.largest <= 8 * length


def test_inputs_longer_than_the_mask_are_refused():
    with pytest.raises(ValueError, match=r"at most 9 tokens, .*got 14"):
        GlobalAttention(0.0, marked([1], 9))(*make_inputs())


@pytest.mark.parametrize(
    "mask",
    [torch.ones(4, 1), torch.ones(4, 4, dtype=torch.bool), torch.tensor(data=True)],
    ids=["float", "matrix", "scalar"],
)
def test_other_masks_are_refused(mask):
    with pytest.raises(ValueError, match=r"expected attention_query_mask, bool \[N, 1\] or \[N\]"):
        GlobalAttention(0.0, mask)


def test_dropout_is_active_in_training_alone():
    attention = GlobalAttention(0.5, marked(TOKENS["some"]))
    inputs = make_inputs()
    torch.manual_seed(0)
    assert not torch.equal(attention(*inputs), attention(*inputs))
    attention.eval()
    assert torch.equal(attention(*inputs), GlobalAttention(0.0, marked([2, 3, 9]))(*inputs))
