"""Attention under torch.compile, torch.export, AOTInductor and TorchScript."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import attn_ops
from attn_ops import LowerTriangularFromBottomRightMask, LowerTriangularMask
from eager_attention import make_inputs

MASKS = [None, LowerTriangularMask(), LowerTriangularFromBottomRightMask().make_local_attention(3)]

# Dynamo itself makes the instance that torch warns of, for every autograd function it traces.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Function'> should not be instantiated:DeprecationWarning"
)
torchscript = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Attention(nn.Module):
    """Self-attention with a projection of its own, so that a gradient has somewhere to go."""

    def __init__(self, attn_bias=None, p=0.0):
        super().__init__()
        self.attn_bias = attn_bias
        self.p = p
        torch.manual_seed(0)
        self.project = nn.Linear(8, 24, dtype=torch.float64)

    def forward(self, x):
        query, key, value = self.project(x).chunk(3, -1)
        return attn_ops.memory_efficient_attention(query, key, value, self.attn_bias, self.p)


def sequences(*lengths):
    return [torch.randn(2, length, 3, 8, dtype=torch.float64) for length in lengths]


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch.compiler.reset()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_compile_of_the_whole_graph_serves_every_length(mask, training):
    module = Attention(mask)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.set_grad_enabled(training), torch._dynamo.config.patch(error_on_recompile=True):
        for x in sequences(5, 9, 2, 31):
            out, expected = compiled(x), module(x)
            assert_close(out, expected)
            if training:
                weights = [module.project.weight, module.project.bias]
                found = torch.autograd.grad(out.square().sum(), weights)
                assert_close(found, torch.autograd.grad(expected.square().sum(), weights))


@pytest.mark.parametrize("bias_shape", [(2, 3, 6, 6), (1, 1, 1, 6)])
def test_compile_with_a_bias_gradient(bias_shape):
    def attend(x, bias):
        return attn_ops.memory_efficient_attention(x, x, x, bias)

    (x,) = sequences(6)
    bias = torch.randn(bias_shape, dtype=torch.float64, requires_grad=True)
    out = torch.compile(attend, fullgraph=True, backend="aot_eager")(x, bias)
    (found,) = torch.autograd.grad(out.square().sum(), bias)
    (expected,) = torch.autograd.grad(attend(x, bias).square().sum(), bias)
    assert_close(found, expected)


def test_compile_of_grouped_5d_inputs():
    def attend(query, key):
        key = key.unsqueeze(3).expand(-1, -1, -1, 3, -1)
        return attn_ops.memory_efficient_attention(query, key, key)

    query, key = torch.randn(2, 5, 2, 3, 8), torch.randn(2, 7, 2, 8, requires_grad=True)
    out = torch.compile(attend, fullgraph=True, backend="aot_eager")(query, key)
    assert_close(out, attend(query, key))
    (found,) = torch.autograd.grad(out.sum(), key)
    assert_close(found, torch.autograd.grad(attend(query, key).sum(), key)[0])


def test_compiled_dropout_is_drawn_anew_and_repeats_with_the_seed():
    module = Attention(p=0.5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    (x,) = sequences(16)
    torch.manual_seed(1)
    first, second = compiled(x), compiled(x)
    torch.manual_seed(1)
    assert torch.equal(compiled(x), first)
    assert not torch.equal(first, second)


def test_compile_under_autocast():
    module = Attention().float()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 5, 3, 8)
    with torch.autocast("cpu"):
        out, expected = compiled(x), module(x)
    assert out.dtype == torch.bfloat16
    assert_close(out, expected)


@pytest.mark.slow
@torchscript  # inductor still uses it
def test_compile_with_inductor():
    module = Attention(LowerTriangularMask())
    (x,) = sequences(9)
    out, expected = torch.compile(module, fullgraph=True)(x), module(x)
    assert_close(out, expected)
    weights = list(module.parameters())
    found = torch.autograd.grad(out.square().sum(), weights)
    assert_close(found, torch.autograd.grad(expected.square().sum(), weights))


def exported(module):
    length = torch.export.Dim("length", min=2, max=4096)
    (x,) = sequences(6)
    with torch.no_grad():
        return torch.export.export(module, (x,), dynamic_shapes={"x": {1: length}})


@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_exported_program_survives_saving(mask, tmp_path):
    module = Attention(mask)
    file = tmp_path / "attention.pt2"
    torch.export.save(exported(module), file)
    loaded = torch.export.load(file).module()
    for x in sequences(6, 11):
        assert_close(loaded(x), module(x))


class ScriptedAttention(nn.Module):
    """What TorchScript can express: 4-D inputs, a tensor bias or a band by numbers."""

    def forward(self, query, key, value):
        full = attn_ops.memory_efficient_attention(query, key, value, scale=0.3)
        causal = torch.ops.attn_ops.attention(query, key, value, band_right=0)
        return full + causal


@torchscript
def test_scripted_module_survives_saving_and_has_gradients(tmp_path):
    inputs = make_inputs(hkv=2, requires_grad=True)
    expected = ScriptedAttention()(*inputs)
    torch.jit.script(ScriptedAttention()).save(tmp_path / "attention.pt")
    out = torch.jit.load(tmp_path / "attention.pt")(*inputs)
    assert_close(out, expected)
    assert_close(
        torch.autograd.grad(out.sum(), inputs), torch.autograd.grad(expected.sum(), inputs)
    )


@torchscript
def test_traced_module():
    inputs = make_inputs()
    traced = torch.jit.trace(ScriptedAttention(), inputs)
    longer = make_inputs(mq=11, mkv=13)
    assert_close(traced(*longer), ScriptedAttention()(*longer))
