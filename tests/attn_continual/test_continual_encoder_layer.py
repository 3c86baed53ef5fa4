"""Encoder layers over a sliding window against torch's layer over every window."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from attn_continual import (
    RetroactiveTransformerEncoderLayer,
    SingleOutputTransformerEncoderLayer,
)
from attn_continual.testing import verify_contract
from reference.continual.transformer_encoder import window_rows

L, N, T, E, H, F = 4, 2, 11, 8, 2, 12
NORMS = pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "norm first"])


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(kind, **options):
    """Return a layer, and torch's with the same weights, none of which is its first value."""
    torch.manual_seed(0)
    layer = kind(E, H, F, dtype=torch.float64, sequence_len=L, **options).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    torchs = nn.TransformerEncoderLayer(
        E,
        H,
        F,
        batch_first=True,
        norm_first=options.get("norm_first", False),
        dtype=torch.float64,
    )
    torchs.load_state_dict(layer.state_dict(), strict=True)
    return layer, torchs.eval()


def windows(torchs, x):
    """Return torch's outputs [N, T', L, E] for every window of [N, T, E]."""
    return torch.stack([torchs(x[:, end - L : end]) for end in range(L, x.shape[1] + 1)], 1)


@pytest.mark.parametrize(
    "kind", [SingleOutputTransformerEncoderLayer, RetroactiveTransformerEncoderLayer]
)
def test_steps_and_forward_read_the_same_of_the_output_projection(kind):
    """As torch's layers do, both read its weights and do not call it."""
    layer, torchs = make(kind)
    for module in (layer, torchs):
        module.self_attn.out_proj.register_forward_hook(lambda *_: pytest.fail("was called"))
    x = random(N, L, E)
    with torch.no_grad():
        expected = torchs(x)
        assert_close(layer(x.transpose(1, 2)).transpose(1, 2), expected)
        last = layer.forward_steps(x.transpose(1, 2))[..., -1]
        assert_close(last.reshape(N, E), expected[:, -1])


@NORMS
@pytest.mark.parametrize("query_index", [-1, -2, 0, L - 1, -L])
def test_single_output_is_a_row_of_torchs_window(query_index, norm_first):
    """The residual belongs to the query, which may be older than the newest key."""
    layer, torchs = make(
        SingleOutputTransformerEncoderLayer, query_index=query_index, norm_first=norm_first
    )
    x = random(N, T, E)
    with torch.no_grad():
        expected = windows(torchs, x)[:, :, query_index]
        got = layer.forward_steps(x.transpose(1, 2)).transpose(1, 2)
        assert_close(got, expected, rtol=0, atol=1e-12)
        layer.clean_state()
        outs = [layer.forward_step(row) for row in x.unbind(1)]
    assert outs[: L - 1] == [None] * (L - 1)
    assert_close(torch.stack(outs[L - 1 :], 1), expected, rtol=0, atol=1e-12)


@NORMS
def test_retroactive_layer_is_torchs_on_every_window(norm_first):
    layer, torchs = make(RetroactiveTransformerEncoderLayer, norm_first=norm_first)
    x = random(N, T, E)
    with torch.no_grad():
        expected = windows(torchs, x).movedim(3, 1)
        assert_close(layer.forward_steps(x.transpose(1, 2)), expected, rtol=0, atol=1e-12)
        layer.clean_state()
        outs = [layer.forward_step(row) for row in x.unbind(1)]
    assert_close(torch.stack(outs[L - 1 :], 2), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SingleOutputTransformerEncoderLayer, {"query_index": -3}),
        (RetroactiveTransformerEncoderLayer, {}),
    ],
    ids=["late", "retroactive"],
)
def test_contract_with_features_second(kind, options):
    layer, _ = make(kind, **options)
    verify_contract(layer, random(N, E, T))


@pytest.mark.parametrize("is_float", [False, True], ids=["bool", "float"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SingleOutputTransformerEncoderLayer, {"query_index": -2}),
        (RetroactiveTransformerEncoderLayer, {}),
    ],
    ids=["late", "retroactive"],
)
def test_masks_of_the_window_and_of_steps(kind, options, is_float):
    layer, torchs = make(kind, **options)
    mask = random(L, L, seed=1) if is_float else torch.eye(L, dtype=torch.bool)
    x, padding = random(N, T, E), torch.zeros(N, T, dtype=torch.bool)
    padding[0, ::4] = padding[1, 2] = True  # at most one step of each window
    windows = [
        window_rows(torchs, x, L, at, padding=padding, mask=mask).detach() for at in range(L)
    ]
    expected = torch.stack(windows, 3)
    expected = expected[..., options["query_index"]] if options else expected
    masks = {"src_mask": mask, "src_key_padding_mask": padding}
    with torch.no_grad():
        whole = layer.forward_steps(x.transpose(1, 2), **masks)
        layer.clean_state()
        for t in range(T):
            masks["src_key_padding_mask"] = padding[:, t]
            out = layer.forward_step(x[:, t], **masks)
    if options:
        assert_close(whole.transpose(1, 2), expected, rtol=0, atol=1e-12)
        assert_close(out, expected[:, -1], rtol=0, atol=1e-12)
    else:
        assert_close(whole, expected.transpose(1, 2), rtol=0, atol=1e-12)
        assert_close(out, expected[:, -1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("query_index", [-1, -2])
def test_single_output_forward_is_one_row_of_the_sequence(query_index):
    layer, torchs = make(
        SingleOutputTransformerEncoderLayer, single_output_forward=True, query_index=query_index
    )
    x = random(N, T, E)
    expected = torchs(x)[:, [query_index]].transpose(1, 2)
    assert_close(layer(x.transpose(1, 2)), expected)
    layer.self_attn.single_output_forward = False
    assert_close(layer(x.transpose(1, 2)), torchs(x).transpose(1, 2))


def test_windows_of_one_step_keep_no_rows():
    for kind in (SingleOutputTransformerEncoderLayer, RetroactiveTransformerEncoderLayer):
        layer = kind(E, H, F, dtype=torch.float64, sequence_len=1)
        assert layer.initial_state(N).rows.shape == (N, 0, E)
        verify_contract(layer, random(N, E, 7))


def test_a_window_is_needed():
    with pytest.raises(ValueError, match="expected sequence_len"):
        RetroactiveTransformerEncoderLayer(E, H)
