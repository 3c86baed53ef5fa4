"""Weights, settings and modes to continual layers and back, against torch's own modules."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from attn_continual import (
    RetroactiveMultiheadAttention,
    RetroactiveTransformerEncoderLayer,
    SingleOutputMultiheadAttention,
    SingleOutputTransformerEncoderLayer,
    StackedTransformerEncoder,
    TransformerEncoder,
    continual,
)
from reference.continual.retroactive import window_rows
from reference.continual.transformer_encoder import newest_rows, stacked_rows

L, N, T, E, H = 4, 2, 10, 8, 2
ENCODERS = {
    "post-norm": {},
    "norm first": {"norm_first": True},
    "gelu": {"activation": "gelu"},
    "function": {"activation": torch.tanh},
    "module": {"activation": nn.PReLU(dtype=torch.float64)},
    "no bias": {"bias": False},
}


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomize(module):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return module.eval()


def torch_encoder(num_layers=3, **options):
    options = {"batch_first": True, **options}
    layer = nn.TransformerEncoderLayer(E, H, 12, dtype=torch.float64, **options)
    norm = nn.LayerNorm(E, dtype=torch.float64)
    return randomize(nn.TransformerEncoder(layer, num_layers, norm, enable_nested_tensor=False))


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"kdim": 5, "vdim": 6}, {"add_bias_kv": True, "add_zero_attn": True}],
    ids=lambda options: "-".join(options) or "plain",
)
def test_attention_there_and_back(options):
    mha = randomize(nn.MultiheadAttention(E, H, batch_first=True, dtype=torch.float64, **options))
    inputs = [random(N, T, width, seed=width) for width in (E, mha.kdim, mha.vdim)]
    expected = window_rows(mha, *inputs, L)
    retroactive = continual(mha, L, "retroactive")
    assert isinstance(retroactive, RetroactiveMultiheadAttention)
    assert_close(retroactive.forward_steps(*inputs), expected, rtol=0, atol=1e-12)
    single = continual(mha, L, query_index=-2)
    assert isinstance(single, SingleOutputMultiheadAttention)
    assert_close(single.forward_steps(*inputs), expected[:, :, -2], rtol=0, atol=1e-12)
    for built in (retroactive, single):
        back = built.to_torch()
        assert type(back) is nn.MultiheadAttention
        assert_close(back(*inputs)[0], mha(*inputs)[0], rtol=0, atol=0)
        mha.load_state_dict(built.state_dict(), strict=True)
        built.load_state_dict(mha.state_dict(), strict=True)


def test_frozen_weights_stay_frozen():
    encoder = torch_encoder(1)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_("bias" in name)
    layer = encoder.layers[0]
    for source in (encoder, layer, layer.self_attn):
        expected = {name: x.requires_grad for name, x in source.named_parameters()}
        built = continual(source, L)
        for module in (built, built.to_torch()):
            assert {name: x.requires_grad for name, x in module.named_parameters()} == expected


class _Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_parametrizations_become_weights():
    mha = randomize(nn.MultiheadAttention(E, H, batch_first=True, dtype=torch.float64))
    x = random(N, L, E)
    built = continual(mha, L, "retroactive")
    for module in (mha, built):
        parametrize.register_parametrization(module, "in_proj_weight", _Doubled())
        parametrize.register_parametrization(module.out_proj, "weight", _Doubled())
    expected = mha(x, x, x)[0]
    for module in (continual(mha, L, "retroactive"), built.to_torch()):
        assert_close(module(x, x, x)[0], expected, rtol=0, atol=1e-12)
        assert module.in_proj_weight.requires_grad
        assert not parametrize.is_parametrized(module)


def test_further_parameters_are_refused():
    mha = nn.MultiheadAttention(E, H)
    mha.out_proj.lora_a = nn.Parameter(torch.zeros(2, E))
    with pytest.raises(ValueError, match=r"also out_proj\.lora_a; merge"):
        continual(mha, L)


@pytest.mark.parametrize("options", ENCODERS.values(), ids=list(ENCODERS))
def test_encoder_there_and_back(options):
    encoder, x = torch_encoder(**options), random(N, T, E)
    with torch.no_grad():
        windowed, stacked = continual(encoder, L), continual(encoder, L, "stacked")
        assert isinstance(windowed, TransformerEncoder)
        assert isinstance(stacked, StackedTransformerEncoder)
        expected = newest_rows(encoder, x, L)
        assert_close(windowed.forward_steps(x), expected, rtol=0, atol=1e-12)
        expected = stacked_rows(encoder, x, L)
        assert_close(stacked.forward_steps(x), expected, rtol=0, atol=1e-12)
        for built in (windowed, stacked):
            back = built.to_torch()
            assert type(back) is nn.TransformerEncoder
            assert {type(layer) for layer in back.layers} == {nn.TransformerEncoderLayer}
            assert_close(back(x), encoder(x), rtol=0, atol=1e-12)
            encoder.load_state_dict(built.state_dict(), strict=True)
            built.load_state_dict(encoder.state_dict(), strict=True)


def test_layers_there_and_back():
    layer, x = torch_encoder(norm_first=True).layers[0], random(N, T, E)
    single, retroactive = continual(layer, L), continual(layer, L, "retroactive")
    assert isinstance(single, SingleOutputTransformerEncoderLayer)
    assert isinstance(retroactive, RetroactiveTransformerEncoderLayer)
    with torch.no_grad():
        expected = torch.stack([layer(x[:, end - L : end]) for end in range(L, T + 1)], 1)
        assert_close(retroactive.forward_steps(x), expected, rtol=0, atol=1e-12)
        assert_close(single.forward_steps(x), expected[:, :, -1], rtol=0, atol=1e-12)
        for built in (single, retroactive):
            assert_close(built.to_torch()(x), layer(x), rtol=0, atol=1e-12)


def test_float32_is_within_a_millionth_of_torch():
    encoder, x = torch_encoder(num_layers=2), random(N, T, E)
    mha = encoder.layers[0].self_attn
    with torch.no_grad():
        cases = (
            (mha, None, window_rows(mha, x, x, x, L)[:, :, -1]),
            (mha, "retroactive", window_rows(mha, x, x, x, L)),
            (encoder.layers[0], None, newest_rows(encoder.layers[0], x, L)),
            (encoder, "windowed", newest_rows(encoder, x, L)),
            (encoder, "stacked", stacked_rows(encoder, x, L)),
        )
        for module, form, expected in cases:
            got = continual(module, L, form).float().forward_steps(x.float())
            atol = 1e-6 * expected.abs().max().item()
            assert_close(got.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_mode_and_settings_of_every_part_are_kept(training):
    encoder = torch_encoder().train(training)
    encoder.layers[0].norm2.eps = 0.25
    encoder.layers[1].dropout2.p = 0.75
    encoder.layers[2].self_attn.dropout = 0.5
    built = continual(encoder, L)
    for module in (built, built.to_torch()):
        assert {part.training for part in module.modules()} == {training}
        assert module.layers[0].norm2.eps == 0.25
        assert module.layers[1].dropout2.p == 0.75
        assert module.layers[2].self_attn.dropout == 0.5


def test_layout_is_kept_unless_another_is_asked_for():
    encoder, x = torch_encoder(batch_first=False), random(N, T, E)
    by_time = continual(encoder, L)
    expected = by_time.forward_steps(x.transpose(0, 1))
    features_second = continual(encoder, L, batch_first=True, embed_dim_second=True)
    out = features_second.forward_steps(x.transpose(1, 2))
    assert_close(out.permute(2, 0, 1), expected)
    assert not by_time.to_torch().layers[0].self_attn.batch_first


def test_nothing_is_shared():
    encoder = torch_encoder(activation=nn.PReLU(dtype=torch.float64))
    before = copy.deepcopy(encoder.state_dict())
    built = continual(encoder, L)
    back = built.to_torch()
    for module in (built, back):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
    assert_close(encoder.state_dict(), before, rtol=0, atol=0)


def test_what_cannot_be_converted_is_refused():
    with pytest.raises(TypeError, match=r"expected one of nn\.MultiheadAttention"):
        continual(nn.Linear(2, 2), L)
    with pytest.raises(ValueError, match="one of windowed, stacked, got 'retroactive'"):
        continual(torch_encoder(), L, "retroactive")
