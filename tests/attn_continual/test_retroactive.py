"""Retroactive attention against torch's attention of every window, in every mode and layout."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from attn_continual import RetroactiveMultiheadAttention
from attn_continual.testing import verify_contract
from reference.continual.retroactive import window_rows

L, N, T, E, H = 4, 3, 10, 8, 2
OPTIONS = [
    {},
    {"bias": False},
    {"kdim": 5, "vdim": 6},
    {"kdim": 5, "vdim": 6, "bias": False, "add_zero_attn": True},
    {"add_bias_kv": True},
    {"add_bias_kv": True, "add_zero_attn": True},
]
LAYOUTS = {
    "time first": ({"batch_first": False}, (1, 0, 2), (1, 2, 0, 3), (1, 0, 2)),
    "features second": ({"embed_dim_second": True}, (0, 2, 1), (0, 3, 1, 2), (0, 2, 1)),
    "batch first": ({}, (0, 1, 2), (0, 1, 2, 3), (0, 1, 2)),
}


def name_of(options):
    return "-".join(options) or "plain"


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def make(length=L, dtype=torch.float64, *, std=0.5, **options):
    """Return a layer, and torch's with the same weights, none of which is zero."""
    torch.manual_seed(0)
    options = {"batch_first": True, **options}
    layer = RetroactiveMultiheadAttention(E, H, sequence_len=length, dtype=dtype, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=std)
    names = ("bias", "add_bias_kv", "add_zero_attn", "kdim", "vdim")
    known = {name: options[name] for name in names if name in options}
    mha = nn.MultiheadAttention(E, H, batch_first=True, dtype=dtype, **known)
    mha.load_state_dict(layer.state_dict(), strict=True)
    return layer.eval(), mha.eval()


def inputs_for(layer, steps=T):
    """Return query, key and value, [N, T, features]."""
    widths = (layer.embed_dim, layer.kdim, layer.vdim)
    return [random(N, steps, width, seed=seed) for seed, width in enumerate(widths)]


def assert_windows(layer, mha, inputs, *, padding=None, attn_mask=None):
    """Hold steps, and uneven chunks, to torch's attention of every window."""
    expected = window_rows(
        mha, *inputs, layer.sequence_len, key_padding_mask=padding, attn_mask=attn_mask
    )
    steps = inputs[0].shape[1]
    outs = []
    for t in range(steps):
        now = None if padding is None else padding[:, t]
        row = [x[:, t] for x in inputs]
        out = layer.forward_step(*row, key_padding_mask=now, attn_mask=attn_mask)
        assert (out is None) == (t < layer.sequence_len - 1)
        outs += [] if out is None else [out]
    assert_close(torch.stack(outs, 1), expected, rtol=0, atol=1e-12)
    layer.clean_state()
    outs = []
    for at in (slice(0, 2), slice(2, 3), slice(3, steps)):
        now = None if padding is None else padding[:, at]
        chunk = [x[:, at] for x in inputs]
        out = layer.forward_steps(*chunk, key_padding_mask=now, attn_mask=attn_mask)
        outs += [] if out is None else [out]
    assert_close(torch.cat(outs, 1), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_every_window_has_the_rows_of_torch(options):
    layer, mha = make(**options)
    assert_windows(layer, mha, inputs_for(layer))


@pytest.mark.parametrize("length", [1, 2, 9])
def test_windows_of_one_two_and_almost_all_steps(length):
    layer, mha = make(length)
    assert_windows(layer, mha, inputs_for(layer))


MASKS = {
    "none": None,
    "bool": torch.eye(L, dtype=torch.bool),
    "float": random(L, L, seed=3),
    "by stream and head": random(N * H, L, L, seed=4),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("is_padded", [False, True], ids=["all keys", "padded"])
def test_masks_of_windows_and_of_steps(name, is_padded):
    layer, mha = make()
    padding = torch.zeros(N, T, dtype=torch.bool)
    padding[1, 1::4] = padding[2, 2] = True
    assert_windows(
        layer,
        mha,
        inputs_for(layer),
        padding=padding if is_padded else None,
        attn_mask=MASKS[name],
    )


def test_hidden_and_nan_keys_never_reach_a_result():
    layer, mha = make()
    x = random(N, T, E)
    padding = torch.zeros(N, T, dtype=torch.bool)
    padding[:, 5] = True
    expected = window_rows(mha, x, x, x, L, key_padding_mask=padding)
    key = x.clone()
    key[:, 5] = torch.nan
    got = layer.forward_steps(x, key, key_padding_mask=padding)
    assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name):
    options, axes, window_axes, row_axes = LAYOUTS[name]
    layer, mha = make(**options)
    x = random(N, T, E)
    given = x.permute(axes)
    verify_contract(layer, given)
    expected = window_rows(mha, x, x, x, L)
    assert_close(layer.forward_steps(given), expected.permute(window_axes))
    layer.clean_state()
    outs = [layer.forward_step(row) for row in x.unbind(1)]
    assert_close(outs[-1], expected[:, -1].permute(row_axes))
    out, weights = layer(given)
    whole, attention = mha(x, x, x)
    assert_close(out, whole.permute(axes))
    assert_close(weights, attention)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_drifts_or_overflows_with_large_logits(dtype):
    """Logits of standard deviation 20 over 100 000 steps, where sums of exponentials give NaN."""
    layer, mha = make(dtype=dtype)
    with torch.no_grad():
        x = random(1, 2000, E, dtype=dtype)
        query, key, _ = nn.functional.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(
            3, 2
        )
        logits = query.unflatten(2, (H, -1)).movedim(2, 1) @ key.unflatten(2, (H, -1)).permute(
            0, 2, 3, 1
        )
        scale = (20 * (E / H) ** 0.5 / logits.float().std()).sqrt()
        layer.in_proj_weight[: 2 * E] *= scale
        layer.in_proj_bias[: 2 * E] *= scale
        mha.load_state_dict(layer.state_dict())
        for _ in range(50):
            out = layer.forward_steps(x)
        tail = x[:, -9:]
        out = torch.cat([out[:, -6:]] + [layer.forward_step(x[:, t])[:, None] for t in range(3)], 1)
        tail = torch.cat([tail, x[:, :3]], 1)
        expected = window_rows(mha.double(), *[tail.double()] * 3, L)
    tolerance = 2e-5 if dtype == torch.float32 else 0.1
    assert_close(out.double(), expected, rtol=0, atol=tolerance * expected.abs().max().item())


def test_a_key_that_dominated_leaves_no_trace():
    """What subtracting it from a sum in float32 would: the other terms are lost beside it."""
    layer, mha = make(dtype=torch.float32, std=1.0)
    x = random(N, T, E, dtype=torch.float32)
    x[:, 3] *= 12
    expected = window_rows(mha.double(), *[x.double()] * 3, L)
    got = layer.forward_steps(x).double()
    assert_close(
        got[:, 4:], expected[:, 4:], rtol=0, atol=3e-6 * expected[:, 4:].abs().max().item()
    )


def test_autocast_computes_in_bfloat16_with_rings_of_float32():
    layer, mha = make(dtype=torch.float32)
    x = random(N, T, E, dtype=torch.float32)
    expected = window_rows(mha, x, x, x, L)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        out = layer.forward_steps(x)
    assert out.dtype == torch.bfloat16
    assert_close(out.float(), expected, rtol=0.05, atol=0.05)


def test_gradients_of_steps_are_those_of_windows():
    layer, mha = make()
    x = random(N, T, E).requires_grad_()
    layer.forward_steps(x).square().sum().backward()
    got, x.grad = x.grad, None
    window_rows(mha, x, x, x, L).square().sum().backward()
    assert_close(got, x.grad, rtol=0, atol=1e-11)
    for ours, theirs in zip(layer.parameters(), mha.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-10)


def test_dropout_acts_in_training_only():
    layer, _ = make(dropout=0.5)
    x = random(N, T, E)
    expected = layer.forward_steps(x)
    layer.clean_state()
    layer.train()
    assert not torch.allclose(layer.forward_steps(x), expected)


def test_copies_go_on_in_mid_stream():
    layer, _ = make()
    x = random(N, T, E)
    layer.forward_steps(x[:, :6])
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]  # noqa: S301
    expected = layer.forward_steps(x[:, 6:])
    for copied in copies:
        assert_close(copied.forward_steps(x[:, 6:]), expected, rtol=0, atol=0)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="expected sequence_len"):
        RetroactiveMultiheadAttention(E, H)
    with pytest.raises(ValueError, match="expected batch_first"):
        RetroactiveMultiheadAttention(E, H, sequence_len=L, embed_dim_second=True)
    layer, _ = make()
    with pytest.raises(ValueError, match="attn_mask: expected"):
        layer.forward_steps(random(N, T, E), attn_mask=random(L, L + 1))
    with pytest.raises(ValueError, match="3 axes"):
        layer.forward_steps(random(T, E))
    with pytest.raises(ValueError, match="2 axes"):
        layer.forward_step(random(N, T, E))
