"""What holds for every continual layer: its contract in both precisions, and graphs of its step."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

import attn_continual
from attn_continual import FunctionalStep, continual, returnn
from attn_continual.testing import verify_contract

L, N, E = 4, 3, 8
SIZES = {"key_dim_total": 8, "value_dim_total": 8, "num_heads": 2}


def encoder(layers, batch_first):
    layer = nn.TransformerEncoderLayer(E, 2, 16, batch_first=batch_first)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def of_torch(form, layers=2):
    def make(batch_first):
        if form in ("windowed", "stacked"):
            return continual(encoder(layers, batch_first), L, form)
        return continual(nn.TransformerEncoderLayer(E, 2, 16, batch_first=batch_first), L, form)

    return make


def attention(name, **options):
    cls = getattr(attn_continual, name)
    return lambda batch_first: cls(E, 2, sequence_len=L, batch_first=batch_first, **options)


def causal(name):
    layer = getattr(returnn, name)
    return lambda _: returnn.ContinualSelfAttention(layer(E, E, **SIZES, window=L))


CASES = {
    "single output": attention("SingleOutputMultiheadAttention", query_index=-2),
    "retroactive": attention("RetroactiveMultiheadAttention", add_zero_attn=True),
    "single-output layer": of_torch("single_output"),
    "retroactive layer": of_torch("retroactive"),
    "windowed encoder of one layer": of_torch("windowed", 1),
    "windowed encoder": of_torch("windowed", 3),
    "stacked encoder": of_torch("stacked"),
    "causal": causal("CausalSelfAttention"),
    "causal by relative position": causal("RelPosCausalSelfAttention"),
}
COMPILED_QUICKLY = {"retroactive", "stacked encoder", "causal by relative position"}

every_layer = pytest.mark.parametrize("name", CASES)


def make(name, dtype, batch_first=True):
    torch.manual_seed(0)
    module = CASES[name](batch_first).to(dtype).eval()
    x = torch.randn(N, module.receptive_field + 5, E, dtype=dtype)
    return module, x.movedim((0, 1), (module.stream_axis, module.time_axis))


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contract(name, dtype):
    verify_contract(*make(name, dtype))


@every_layer
def test_contract_with_time_first(name):
    module, x = make(name, torch.float64, batch_first=False)
    verify_contract(module, x)


def assert_same_steps(got, expected, rows):
    state = other = expected.initial_state(N)
    with torch.no_grad():
        for row in rows:
            y, *state, valid = got(row, *state)
            expected_y, *other, expected_valid = expected(row, *other)
            assert torch.equal(valid, expected_valid)
            assert_close(y, expected_y, rtol=0, atol=1e-12)
            assert_close(state, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in COMPILED_QUICKLY))
        for name in CASES
    ],
)
def test_one_compiled_graph_serves_every_step(name):
    torch.compiler.reset()
    module, x = make(name, torch.float64)
    step, graphs = FunctionalStep(module), CompileCounter()
    compiled = torch.compile(step, fullgraph=True, backend=graphs)
    assert_same_steps(compiled, step, x.unbind(1))
    assert graphs.frame_count == 1


@every_layer
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_traced_step(name):
    module, x = make(name, torch.float64)
    step = FunctionalStep(module)
    with torch.no_grad():
        traced = torch.jit.trace(step, (x[:, 0], *step.initial_state(N)))
    assert_same_steps(traced, step, x.unbind(1))


@every_layer
@pytest.mark.slow
def test_exported_step(name):
    module, x = make(name, torch.float64)
    step = FunctionalStep(module)
    with torch.no_grad():
        exported = torch.export.export(step, (x[:, 0], *step.initial_state(N)))
    assert_same_steps(exported.module(), step, x.unbind(1))
