"""Encoders over streams against torch's encoder of every window, at any depth."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from attn_continual import (
    StackedTransformerEncoder,
    TransformerEncoder,
    TransformerEncoderLayerFactory,
    call_mode,
    single_output,
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


def by_steps(encoder, x, padding=None, **masks):
    """Return the outputs [N, T', E] that single steps of [N, T, E] have."""
    hidden = [{}] * x.shape[1]
    if padding is not None:
        hidden = [{"src_key_padding_mask": column} for column in padding.unbind(1)]
    outs = [
        encoder.forward_step(row, **now, **masks)
        for row, now in zip(x.unbind(1), hidden, strict=True)
    ]
    early = encoder.receptive_field - 1
    assert all((out is None) == (t < early) for t, out in enumerate(outs))
    return torch.stack(outs[early:], 1)


def by_chunks(encoder, x, lengths, padding=None, **masks):
    """Return the outputs [N, T', E] that chunks have."""
    hidden = [{}] * len(lengths)
    if padding is not None:
        hidden = [{"src_key_padding_mask": columns} for columns in padding.split(lengths, 1)]
    outs = [
        encoder.forward_steps(encoder.layout.from_rows(chunk), **now, **masks)
        for chunk, now in zip(x.split(lengths, 1), hidden, strict=True)
    ]
    return torch.cat([encoder.layout.to_rows(out) for out in outs if out is not None], 1)


def assert_outputs(encoder, x, expected, **masks):
    """Hold steps, uneven chunks and one chunk to what is expected, whichever has its state left."""
    rest = x.shape[1] - 10
    with torch.no_grad():
        assert_close(by_steps(encoder, x, **masks), expected, rtol=0, atol=1e-12)
        for lengths in ((1, 2, 7, rest), (10 + rest,)):
            encoder.clean_state()
            assert_close(by_chunks(encoder, x, lengths, **masks), expected, rtol=0, atol=1e-12)


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
    assert_outputs(encoder, x, expected)


MASKS = {  # of a window, and whether steps are hidden too: of each window one at most
    "padding": (None, True),
    "causal": (torch.ones(L, L, dtype=torch.bool).triu(1), False),
    "bool": (torch.eye(L, dtype=torch.bool).roll(1, 0), True),
    "by stream and head": (random(N * H, L, L, seed=6), True),
}
FORMS = {
    "windowed": (TransformerEncoder, newest_rows),
    "stacked": (StackedTransformerEncoder, stacked_rows),
}
by_form = pytest.mark.parametrize(("form", "reference"), FORMS.values(), ids=list(FORMS))


def hidden_steps(steps=T):
    padding = torch.zeros(N, steps, dtype=torch.bool)
    padding[0, 1::5] = padding[1, 3:10:5] = True
    return padding


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("num_layers", [1, 3])
@by_form
def test_masks_of_the_window_and_of_steps(form, reference, num_layers, name):
    encoder, torchs = make(form, num_layers)
    mask, is_padded = MASKS[name]
    x, padding = random(N, T + 2, E), hidden_steps(T + 2) if is_padded else None
    # With gradients: torch's quick way without them takes no floating-point masks.
    expected = reference(torchs, x, L, padding=padding, mask=mask).detach()
    assert_outputs(encoder, x, expected, padding=padding, mask=mask)


@by_form
def test_what_hidden_steps_hold_reaches_no_other(form, reference):
    """Nor do windows of which every step is hidden, where torch gives NaN."""
    del reference
    encoder, _ = make(form, 3)
    x, padding, lengths = random(N, T, E), torch.zeros(N, T, dtype=torch.bool), (3, 4, T - 7)
    padding[:, 1:6] = True
    with torch.no_grad():
        expected = by_chunks(encoder, x, lengths, padding)
        x[:, 1:6] = torch.nan
        encoder.clean_state()
        got = by_chunks(encoder, x, lengths, padding)
    first = max(6 - encoder.warm_up_steps, 0)
    assert got[:, first:].isfinite().all()
    assert torch.equal(got[:, first:], expected[:, first:])


@pytest.mark.parametrize("query_index", [-2, 0])
def test_rows_of_stacked_layers_that_look_ahead(query_index):
    """What each layer waits for adds up, and hidden steps wait along."""
    _, torchs = make(StackedTransformerEncoder, 3)
    encoder = StackedTransformerEncoder.build_from(torchs, L, query_index=query_index)
    assert encoder.delay == 3 * (-1 - query_index) % (3 * L)
    x, padding = random(N, T + 2, E), hidden_steps(T + 2)
    with torch.no_grad():
        expected = stacked_rows(torchs, x, L, query_index, padding=padding)
    assert_outputs(encoder, x, expected, padding=padding)
    if query_index == -2:
        encoder.clean_state()
        verify_contract(encoder, x)


def test_plain_steps_of_a_stack_attend_in_one_operator_a_layer(monkeypatch):
    """A mask that is not there is not made up, which would go the longer way."""
    native, calls = single_output.multihead_attention_step_, []
    monkeypatch.setattr(
        single_output,
        "multihead_attention_step_",
        lambda *x, **y: calls.append(0) or native(*x, **y),
    )
    encoder, _ = make(StackedTransformerEncoder, 3)
    with torch.no_grad():
        encoder.forward_step(random(N, E))
        assert len(calls) == 3
        encoder.forward_step(random(N, E), src_key_padding_mask=torch.zeros(N, dtype=torch.bool))
    assert len(calls) == 3


def test_masks_that_steps_cannot_take_are_refused():
    encoder, _ = make(TransformerEncoder, 2)
    x = random(N, E, T)
    with pytest.raises(ValueError, match=r"attn_mask: expected \[4, 4\]"):
        encoder.forward_steps(x, mask=torch.zeros(T, T))
    with pytest.raises(ValueError, match=r"expected a bool tensor \[N, T\]"):
        encoder.forward_steps(x, src_key_padding_mask=torch.zeros(N, T))
    with pytest.raises(TypeError, match="is_causal"):
        encoder.forward_steps(x, is_causal=True)


def test_the_two_forms_are_the_same_function_with_one_layer_only():
    x = random(N, T, E).transpose(1, 2)
    for num_layers, is_same in ((1, True), (2, False)):
        forms = TransformerEncoder, StackedTransformerEncoder
        outs = [make(form, num_layers)[0].forward_steps(x)[:, :, -1] for form in forms]
        assert torch.allclose(*outs, rtol=0, atol=1e-12) == is_same


@pytest.mark.parametrize("form", [TransformerEncoder, StackedTransformerEncoder])
def test_contract_with_features_second_and_norm_first(form):
    encoder, _ = make(form, 3, norm_first=True)
    verify_contract(encoder, random(N, E, T + 2))


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
