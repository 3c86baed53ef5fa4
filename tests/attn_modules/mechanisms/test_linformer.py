"""Linformer against its paper's equation."""

import pytest
import torch
from torch.testing import assert_close

from attn_modules import LinformerAttention
from reference.modules.linformer import linformer_attention

B, H, SEQ_LEN, K, KV = 2, 3, 12, 6, 4


def qkv(length=SEQ_LEN):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(B, H, length, width, generator=generator, dtype=torch.float64).requires_grad_()
        for width in (K, K, KV)
    ]


def made(dropout=0.0, k=5):
    torch.manual_seed(0)
    return LinformerAttention(dropout, SEQ_LEN, k).double()


def reference(attention, inputs, keep=None):
    weights = attention.E.weight, attention.F.weight
    out = [
        [
            linformer_attention(
                *(x[b, h] for x in inputs), *weights, None if keep is None else keep[b][h]
            )
            for h in range(H)
        ]
        for b in range(B)
    ]
    return torch.stack([torch.stack(heads) for heads in out])


def assert_alike(ours, expected, *inputs):
    assert_close(ours, expected)
    weight = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64).reshape(ours.shape)
    gradients = (torch.autograd.grad(out, inputs, weight) for out in (ours, expected))
    for mine, theirs in zip(*gradients, strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("length", [SEQ_LEN, 7, 1])
def test_output_and_gradients(length):
    attention, inputs = made(), qkv(length)
    ours = attention(*inputs)
    assert_alike(ours, reference(attention, inputs), *inputs, *attention.parameters())
    folded = attention(*(x.flatten(0, 1) for x in inputs))
    assert_close(folded, ours.flatten(0, 1))


@pytest.mark.parametrize("by_head", [False, True], ids=["by batch", "by head"])
def test_padded_keys_are_zeros(by_head):
    attention, inputs = made(), qkv()
    keep = torch.rand(B, H, SEQ_LEN, generator=torch.Generator().manual_seed(1)) < 0.6
    if not by_head:
        keep = keep[:, :1].expand(B, H, SEQ_LEN)
    expected = reference(attention, inputs, keep)
    mask = keep.flatten(0, 1) if by_head else keep[:, 0]
    layout = (lambda x: x.flatten(0, 1)) if by_head else (lambda x: x)
    ours = attention(*map(layout, inputs), key_padding_mask=mask)
    assert_alike(ours, layout(expected), *inputs, *attention.parameters())


def test_state_is_the_two_projections():
    attention = LinformerAttention(0.0, 20)
    shapes = {name: list(x.shape) for name, x in attention.state_dict().items()}
    assert shapes == {"E.weight": [5, 20], "F.weight": [5, 20]}
    assert LinformerAttention(0.0, 3).k == 1


def test_dropout_drops_probabilities_once():
    """Where every probability is 1 / k and v sums to 1, a result is a count of those kept."""
    attention = LinformerAttention(0.25, 64, 64).train()
    with torch.no_grad():
        attention.F.weight.copy_(torch.eye(64))
    q, k, v = torch.zeros(1, 1, 64, 8), torch.randn(1, 1, 64, 8), torch.eye(64)[None, None]
    weights = attention(q, k, v) * 64
    assert_close(weights.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert 0.2 < (weights == 0).float().mean() < 0.3
    assert torch.equal(attention.eval()(q, k, v), torch.full((1, 1, 64, 64), 1 / 64))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at most seq_len=12 keys, got 13; make it with a larger"):
        made()(*qkv(13))
    with pytest.raises(ValueError, match="as many keys as queries"):
        made()(qkv(5)[0], *qkv(6)[1:])
    with pytest.raises(NotImplementedError, match="expected no att_mask"):
        made()(*qkv(), att_mask=torch.ones(SEQ_LEN, SEQ_LEN, dtype=torch.bool))
    for arguments in ((0,), (8, 0), (8, -1)):
        with pytest.raises(ValueError, match=r"(seq_len|k), an int of 1 or more"):
            LinformerAttention(0.0, *arguments)
