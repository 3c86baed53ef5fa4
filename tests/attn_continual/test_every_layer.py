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


@every_layer
def test_what_is_refused_leaves_the_state_alone(name):
    module, x = make(name, torch.float32)
    rows = {
        "streams": torch.zeros(N - 1, E),
        "features": torch.zeros(N, E - 1),
        "one feature": torch.zeros(N, 1),
        "no axes": torch.zeros(()),
    }
    if "causal" not in name:  # torch says it of their projections, before anything is written
        rows["dtype"] = torch.zeros(N, E, dtype=torch.float64)
    with torch.no_grad():
        module.forward_steps(x)
        before = module.get_state()
        for row in rows.values():
            chunk = row[:, None] if row.dim() else row
            for run, given in ((module.forward_step, row), (module.forward_steps, chunk)):
                with pytest.raises(ValueError, match=r"expected .* got"):
                    run(given)
                assert_close(module.get_state(), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in CASES if "layer" in name or "encoder" in name])
def test_masks_that_are_refused_leave_the_state_alone(name):
    module, x = make(name, torch.float32)
    mask = "mask" if "encoder" in name else "src_mask"
    refused = [
        {mask: torch.zeros(L, L + 1)},
        {mask: torch.zeros(2 * (N - 1), L, L)},
        {"src_key_padding_mask": torch.zeros(1) > 0},
        {"src_key_padding_mask": torch.zeros(N, 1) > 0},
    ]
    with torch.no_grad():
        module.forward_steps(x)
        before = module.get_state()
        for masks in refused:
            with pytest.raises(ValueError, match=r"expected .* got"):
                module.forward_step(torch.ones(N, E), **masks)
            assert_close(module.get_state(), before, rtol=0, atol=0)


@every_layer
@pytest.mark.parametrize(
    "active", [torch.ones(1).bool(), torch.ones(N), torch.ones(N, 1).bool(), torch.ones(4).bool()]
)
def test_active_streams_are_told_by_one_bool_each(name, active):
    module, x = make(name, torch.float32)
    state = module.initial_state(N)
    with torch.no_grad():
        for run, given, in_place in (
            (module.step, x[:, 0], False),
            (module.step, x[:, 0], True),
            (module.steps, x, False),
        ):
            with pytest.raises(ValueError, match=r"expected active, bool \[3\], got"):
                run(given, state, active=active, in_place=in_place)
            assert_close(state, module.initial_state(N), rtol=0, atol=0)


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
