"""Every continual layer, small, for tests of what holds for all of them."""

import torch
from torch import nn

import attn_continual
from attn_continual import (
    RecyclingPositionalEncoding,
    Residual,
    SingleOutputMultiheadAttention,
    continual,
    returnn,
)

L, N, E, POSITIONS = 4, 3, 8, 7
_SIZES = {"key_dim_total": 8, "value_dim_total": 8, "num_heads": 2}


def _encoder(form, layers):
    def make(length, batch_first):
        layer = nn.TransformerEncoderLayer(E, 2, 16, batch_first=batch_first)
        encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        return continual(encoder, length, form)

    return make


def _encoder_layer(form):
    def make(length, batch_first):
        layer = nn.TransformerEncoderLayer(E, 2, 16, batch_first=batch_first)
        return continual(layer, length, form)

    return make


def _attention(name, **options):
    cls = getattr(attn_continual, name)
    return lambda length, batch_first: cls(
        E, 2, sequence_len=length, batch_first=batch_first, **options
    )


def _causal(name):
    layer = getattr(returnn, name)
    return lambda length, _: returnn.ContinualSelfAttention(layer(E, E, **_SIZES, window=length))


def _residual(length, batch_first):
    return Residual(
        SingleOutputMultiheadAttention(
            E, 2, sequence_len=length, query_index=-length, batch_first=batch_first
        )
    )


CASES = {
    "single output": _attention("SingleOutputMultiheadAttention"),
    "oldest output": _attention("SingleOutputMultiheadAttention", query_index=0),
    "extra keys": _attention(
        "SingleOutputMultiheadAttention", add_bias_kv=True, add_zero_attn=True
    ),
    "retroactive": _attention("RetroactiveMultiheadAttention", add_zero_attn=True),
    "single-output layer": _encoder_layer("single_output"),
    "retroactive layer": _encoder_layer("retroactive"),
    "windowed encoder of one layer": _encoder("windowed", 1),
    "windowed encoder": _encoder("windowed", 3),
    "stacked encoder": _encoder("stacked", 2),
    "causal": _causal("CausalSelfAttention"),
    "causal by relative position": _causal("RelPosCausalSelfAttention"),
    "positions": lambda *_: RecyclingPositionalEncoding(E, POSITIONS),
    "residual": _residual,
}


def make(name, dtype, *, length=L, batch_first=True):
    """Return a layer in evaluation mode, and N streams of 5 steps more than it depends on."""
    torch.manual_seed(0)
    module = CASES[name](length, batch_first).to(dtype).eval()
    x = torch.randn(N, module.receptive_field + 5, E, dtype=dtype)
    return module, x.movedim((0, 1), (module.stream_axis, module.time_axis))
