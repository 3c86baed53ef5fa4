"""Encoders over streams against torch's encoder of every window, at any depth."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from attn_continual import (
    FunctionalStep,
    StackedTransformerEncoder,
    TransformerEncoder,
    TransformerEncoderLayerFactory,
    call_mode,
)
from attn_continual.testing import verify_contract
from reference.continual.transformer_encoder import newest_rows, stacked_rows

L, N, T, E, H, F = 4, 2, 13, 8, 2, 12
SETTINGS = {
    "post-norm relu": {},
    "norm first": {"norm_first": True},
    "gelu": {"activation": "gelu"},
    "norm first gelu": {"norm_first": True, "activation": "gelu"},
    "function": {"activation": torch.tanh},
    "module": {"activation": nn.PReLU(dtype=torch.float64)},
    "no bias": {"bias": False, "layer_norm_eps": 1e-3},
}
LAYOUTS = {
    "features second": ({}, (0, 2, 1)),
    "batch first": ({"embed_dim_second": False}, (0, 1, 2)),
    "time first": ({"embed_dim_second": False, "batch_first": False}, (1, 0, 2)),
}
by_settings = pytest.mark.parametrize("settings", SETTINGS.values(), ids=list(SETTINGS))
by_depth = pytest.mark.parametrize("num_layers", [1, 2, 4])


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomize(module):
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return module.eval()


def make(kind, num_layers, *, has_norm=True, dropout=0.1, **settings):
    """Return an encoder, and torch's with the same weights, none of which is its first value."""
    norm = nn.LayerNorm(E, dtype=torch.float64) if has_norm else None
    factory = TransformerEncoderLayerFactory(
        E, H, F, dropout, dtype=torch.float64, sequence_len=L, **settings
    )
    encoder = randomize(kind(factory, num_layers, norm))
    known = {k: v for k, v in settings.items() if k not in ("embed_dim_second", "batch_first")}
    layer = nn.TransformerEncoderLayer(
        E, H, F, dropout, batch_first=True, dtype=torch.float64, **copy.deepcopy(known)
    )
    torchs = nn.TransformerEncoder(
        layer, num_layers, copy.deepcopy(norm), enable_nested_tensor=False
    )
    torchs.load_state_dict(encoder.state_dict(), strict=True)
    return encoder, torchs.eval()


def by_steps(encoder, x):
    """Return the outputs [N, T', E] that single steps of [N, T, E] have."""
    outs = [encoder.forward_step(row) for row in x.unbind(1)]
    early = encoder.receptive_field - 1
    assert all((out is None) == (t < early) for t, out in enumerate(outs))
    return torch.stack(outs[early:], 1)


def by_chunks(encoder, x, lengths=(1, 2, 7, 3)):
    """Return the outputs [N, T', E] that chunks have."""
    outs = [encoder.forward_steps(encoder.layout.from_rows(c)) for c in x.split(lengths, 1)]
    return torch.cat([encoder.layout.to_rows(out) for out in outs if out is not None], 1)


def assert_outputs(encoder, x, expected):
    with torch.no_grad():
        assert_close(by_steps(encoder, x), expected, rtol=0, atol=1e-12)
        encoder.clean_state()
        assert_close(by_chunks(encoder, x), expected, rtol=0, atol=1e-12)
        encoder.clean_state()
        whole = encoder.layout.to_rows(encoder.forward_steps(encoder.layout.from_rows(x)))
        assert_close(whole, expected, rtol=0, atol=1e-12)


@by_settings
@by_depth
def test_windowed_encoder_is_torchs_on_every_window(num_layers, settings):
    encoder, torchs = make(TransformerEncoder, num_layers, **settings)
    x = random(N, T, E)
    assert encoder.receptive_field == L
    with torch.no_grad():
        expected = newest_rows(torchs, x, L)
    assert_outputs(encoder, x, expected)


@by_settings
@by_depth
def test_stacked_encoder_sees_each_layers_last_outputs(num_layers, settings):
    encoder, torchs = make(StackedTransformerEncoder, num_layers, **settings)
    x = random(N, T + 1, E)
    assert encoder.receptive_field == num_layers * (L - 1) + 1
    with torch.no_grad():
        expected = stacked_rows(torchs, x, L)
    with torch.no_grad():
        assert_close(by_steps(encoder, x), expected, rtol=0, atol=1e-12)
        encoder.clean_state()
        assert_close(by_chunks(encoder, x, (1, 2, 8, 3)), expected, rtol=0, atol=1e-12)


def test_the_two_forms_are_the_same_function_with_one_layer_only():
    x = random(N, T, E).transpose(1, 2)
    for num_layers, is_same in ((1, True), (2, False)):
        forms = TransformerEncoder, StackedTransformerEncoder
        outs = [make(form, num_layers)[0].forward_steps(x)[:, :, -1] for form in forms]
        assert torch.allclose(*outs, rtol=0, atol=1e-12) == is_same


@pytest.mark.parametrize("form", [TransformerEncoder, StackedTransformerEncoder])
@pytest.mark.parametrize(
    ("name", "num_layers"), [("features second", 3), ("batch first", 1), ("time first", 2)]
)
def test_contract_in_every_layout(form, name, num_layers):
    options, axes = LAYOUTS[name]
    encoder, _ = make(form, num_layers, norm_first=num_layers == 3, **options)
    verify_contract(encoder, random(N, T + 2, E).permute(axes))


@by_depth
def test_forward_is_torchs_without_windows(num_layers):
    x = random(N, T, E)
    mask = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)
    padding = torch.zeros(N, T, dtype=torch.float64)
    padding[1, 5] = -torch.inf
    for form in (TransformerEncoder, StackedTransformerEncoder):
        encoder, torchs = make(form, num_layers)
        for masks in ((), (mask,), (None, padding), (mask, padding)):
            expected = torchs(x, *masks)
            out = encoder(x.transpose(1, 2), *masks).transpose(1, 2)
            is_restricted = form is TransformerEncoder and num_layers > 1
            assert_close(out, expected[:, -1:] if is_restricted else expected)
        causal = encoder(x.transpose(1, 2), mask, is_causal=True)
        assert_close(causal, encoder(x.transpose(1, 2), mask))
        with pytest.raises(ValueError, match="expected an attn_mask"):
            encoder(x.transpose(1, 2), is_causal=True)


def test_call_modes_reach_no_layer_within():
    encoder, _ = make(TransformerEncoder, 2)
    x = random(N, E, T)
    expected = encoder.forward_steps(x)
    encoder.clean_state()
    with call_mode("forward_steps"):
        assert_close(encoder(x), expected)
        assert_close(encoder.forward(x), encoder.forward(x))


def test_float32_and_bfloat16():
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 0.1)):
        encoder, torchs = make(TransformerEncoder, 3)
        x = random(N, T, E)
        expected = newest_rows(torchs, x, L)
        with torch.no_grad():
            out = by_steps(encoder.to(dtype), x.to(dtype)).double()
        assert_close(out, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def test_dropout_acts_in_training_everywhere():
    encoder, _ = make(TransformerEncoder, 2, dropout=0.5)
    x = random(N, E, T)
    expected = encoder.forward_steps(x)
    encoder.clean_state()
    encoder.train()
    outs = [encoder.forward_steps(x, update_state=False) for _ in range(2)]
    assert not torch.allclose(*outs)
    assert not torch.allclose(outs[0], expected)
    layers = encoder.layers
    assert all(layer.self_attn.dropout == layer.dropout1.p == 0.5 for layer in layers)


def test_copies_go_on_in_mid_stream():
    encoder, _ = make(TransformerEncoder, 3)
    x = random(N, E, T)
    with torch.no_grad():
        encoder.forward_steps(x[:, :, :6])
        copies = [copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))]  # noqa: S301
        expected = encoder.forward_steps(x[:, :, 6:])
        for copied in copies:
            assert_close(copied.forward_steps(x[:, :, 6:]), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("form", "lengths"),
    [
        pytest.param(TransformerEncoder, [None] * 6, marks=pytest.mark.slow),
        (StackedTransformerEncoder, [None] * 9),
        pytest.param(TransformerEncoder, [5, 2, 9], marks=pytest.mark.slow),
        pytest.param(StackedTransformerEncoder, [5, 2, 9], marks=pytest.mark.slow),
    ],
    ids=["windowed", "stacked", "windowed chunks", "stacked chunks"],
)
def test_one_compiled_graph_crosses_the_fill_boundary(form, lengths):
    torch.compiler.reset()
    chunked = lengths[0] is not None
    run = FunctionalStep(make(form, 2)[0], "steps" if chunked else "step")
    compiled = torch.compile(run, fullgraph=True, dynamic=chunked, backend="aot_eager")
    state = other = run.initial_state(3)
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        for seed, length in enumerate(lengths):
            x = random(3, E, length, seed=seed) if chunked else random(3, E, seed=seed)
            y, *state, valid = compiled(x, *state)
            expected, *other, expected_valid = run(x, *other)
            assert torch.equal(valid, expected_valid)
            assert_close(y, expected, rtol=0, atol=1e-12)


def test_layers_share_nothing():
    factory = TransformerEncoderLayerFactory(E, H, F, activation=nn.PReLU(), sequence_len=L)
    encoder = TransformerEncoder(factory, 3)
    names = [name for name, _ in encoder.named_parameters(remove_duplicate=False)]
    assert len(names) == len(list(encoder.parameters()))
    kinds = [type(layer).__name__ for layer in encoder.layers]
    assert kinds == [
        "RetroactiveTransformerEncoderLayer",
        "TransformerEncoderLayer",
        "SingleOutputTransformerEncoderLayer",
    ]


def test_arguments_are_checked():
    factory = TransformerEncoderLayerFactory(E, H, F, sequence_len=L)
    with pytest.raises(ValueError, match="expected 1 layer or more, got 0"):
        TransformerEncoder(factory, 0)
    with pytest.raises(TypeError, match="as a TransformerEncoderLayerFactory does, got a Retroac"):
        TransformerEncoder(factory("retroactive"), 2)
    with pytest.raises(ValueError, match="expected one of retroactive"):
        factory("continual")
    with pytest.raises(ValueError, match="expected sequence_len"):
        TransformerEncoderLayerFactory(E, H)("single_output")
    with pytest.raises(ValueError, match="expected batch_first"):
        TransformerEncoderLayerFactory(E, H, sequence_len=L, batch_first=False)("regular")
    with pytest.raises(ValueError, match="3 axes"):
        TransformerEncoder(factory, 2).forward_steps(torch.zeros(E, T))
