"""Attention under torch.compile, torch.export, AOTInductor and TorchScript."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import attn_ops
from attn_ops import LowerTriangularFromBottomRightMask, LowerTriangularMask
from attn_ops._autograd import attend, attend_with_lse, gradients
from attn_ops.fmha import attn_bias
from attn_ops.mask import Band, MaskSpec, Relative, Sequences
from eager_attention import make_inputs
from masked_attention import MASKS as MASK_PARTS
from masked_attention import SCALE, make_call

MASKS = [None, LowerTriangularMask(), LowerTriangularFromBottomRightMask().make_local_attention(3)]

# Dynamo itself makes the instance that torch warns of, for every autograd function it traces.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Function'> should not be instantiated:DeprecationWarning"
)
torchscript = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def attend_call(call):
    return attend_with_lse(call.query, call.key, call.value, call.mask, SCALE, None)


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


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bias_shape", [(2, 3, 6, 6), (1, 1, 1, 6)])
def test_compile_with_a_bias_gradient(bias_shape, dynamic):
    def attend(x, bias):
        return attn_ops.memory_efficient_attention(x, x, x, bias)

    (x,) = sequences(6)
    bias = torch.randn(bias_shape, dtype=torch.float64, requires_grad=True)
    out = torch.compile(attend, fullgraph=True, dynamic=dynamic, backend="aot_eager")(x, bias)
    (found,) = torch.autograd.grad(out.square().sum(), bias)
    (expected,) = torch.autograd.grad(attend(x, bias).square().sum(), bias)
    assert_close(found, expected)


@pytest.mark.parametrize("name", MASK_PARTS)
def test_compile_with_every_part_of_a_mask(name):
    """The mask is built outside the region; its results and gradients are those of eager."""
    call = make_call(name, requires_grad=True)
    compiled = torch.compile(attend_call, fullgraph=True, backend="aot_eager")
    found, expected = compiled(call), attend_call(call)
    assert_close(found, expected)
    grad_outputs = [torch.randn_like(x) for x in expected]
    assert_close(
        torch.autograd.grad(found, call.tensors, grad_outputs),
        torch.autograd.grad(expected, call.tensors, grad_outputs),
    )


def test_compile_with_a_mask_built_inside_serves_every_length():
    def attend(x, lengths, table):
        start = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)
        mask = MaskSpec(
            Band(right=0), sequences=Sequences(start, start), relative=Relative(table=table)
        )
        return attend_with_lse(x, x, x, mask, None, None)

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")
    table = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ([2, 3], [4, 1, 6], [7, 1]):
            x = torch.randn(1, sum(lengths), 3, 8, dtype=torch.float64)
            found, expected = (run(x, torch.tensor(lengths), table) for run in (compiled, attend))
            assert_close(found, expected)
            assert_close(
                torch.autograd.grad(found[0].square().sum(), table),
                torch.autograd.grad(expected[0].square().sum(), table),
            )


def make_paged():
    table = torch.tensor([[1, 0], [2, 3]], dtype=torch.int32)
    return attn_bias.PagedBlockDiagonalPaddedKeysMask.from_seqlens([2, 3], [3, 7], table, 4)


def make_biased():
    table = torch.linspace(-1, 1, 15, dtype=torch.float64).view(3, 5)
    return LowerTriangularMask().add_bias(attn_bias.RelativePositionBias(table))


@pytest.mark.parametrize(
    ("make", "num_keys"),
    [
        (lambda: attn_bias.BlockDiagonalCausalMask.from_seqlens([2, 3]), 5),
        (make_paged, 16),
        (lambda: attn_bias.BlockSparseMask.from_pattern(torch.ones(3, 2, dtype=torch.bool), 2), 4),
        (lambda: attn_bias.AlibiBias.for_heads(3), 5),
        (make_biased, 5),
    ],
    ids=["packed", "paged", "sparse", "alibi", "biased"],
)
def test_compile_with_mask_objects_made_outside_and_inside(make, num_keys):
    outside = make()

    def attend(query, key):
        found = attn_ops.memory_efficient_attention(query, key, key, outside)
        return found + attn_ops.memory_efficient_attention(query, key, 2 * key, make())

    query = torch.randn(1, 5, 3, 8, dtype=torch.float64)
    key = torch.randn(1, num_keys, 3, 8, dtype=torch.float64, requires_grad=True)
    out = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")(query, key)
    expected = attend(query, key)
    assert_close(out, expected)
    (found,) = torch.autograd.grad(out.square().sum(), key)
    assert_close(found, torch.autograd.grad(expected.square().sum(), key)[0])


def test_compiled_mask_argument_serves_other_lengths():
    def attend(x, mask):
        return attn_ops.memory_efficient_attention(x, x, x, mask)

    def check(*lengths):
        x = torch.randn(1, sum(lengths), 2, 8)
        mask = attn_bias.BlockDiagonalMask.from_seqlens(lengths)
        assert_close(compiled(x, mask), attend(x, mask))

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    check(2, 3)
    check(4, 5)  # lengths turn dynamic
    with torch._dynamo.config.patch(error_on_recompile=True):
        check(1, 9)
        check(6, 6)


def test_compile_of_the_gradients():
    """The backward operator by itself, as memory_efficient_attention_backward calls it."""
    call = make_call("everything")
    out, lse = attend_call(call)

    def backward(grad_out, call):
        saved = (out, lse, call.query, call.key, call.value, call.mask, SCALE)
        return gradients(grad_out, *saved, needed=(True,) * 7)

    compiled = torch.compile(backward, fullgraph=True, backend="aot_eager")
    grad_out = torch.randn_like(out)
    assert_close(compiled(grad_out, call), backward(grad_out, call))


def test_compile_of_grouped_5d_inputs():
    def attend(query, key):
        key = key.unsqueeze(3).expand(-1, -1, -1, 3, -1)
        return attn_ops.memory_efficient_attention(query, key, key)

    query, key = torch.randn(2, 5, 2, 3, 8), torch.randn(2, 7, 2, 8, requires_grad=True)
    out = torch.compile(attend, fullgraph=True, backend="aot_eager")(query, key)
    assert_close(out, attend(query, key))
    (found,) = torch.autograd.grad(out.sum(), key)
    assert_close(found, torch.autograd.grad(attend(query, key).sum(), key)[0])


def test_compile_for_every_scale_and_softcap():
    def attend(x, scale, softcap, p):
        return attn_ops.memory_efficient_attention(x, x, x, scale=scale, softcap=softcap, p=p)

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")
    (x,) = sequences(6)
    for numbers in ((0.3, 20.0, 0.5), (1, 3, 0), (-0.5, 0.75, 1.0)):
        torch.manual_seed(3)
        expected = attend(x, *numbers)
        torch.manual_seed(3)
        assert_close(compiled(x, *numbers), expected)


def test_compile_of_padding_that_follows_the_shape():
    def attend(x, tables):
        padding = x.shape[1] // 2
        mask = attn_bias.BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], padding, [1, 2])
        paged = mask.make_paged(tables, padding, attn_bias.PagedBlockDiagonalPaddedKeysMask)
        return [attn_ops.memory_efficient_attention(x[:, :2], x, x, m) for m in (mask, paged)]

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")
    tables = torch.tensor([[1], [0]], dtype=torch.int32)
    for length in (6, 8):
        x = torch.randn(1, length, 2, 8)
        assert_close(compiled(x, tables), attend(x, tables))


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


class MaskedAttention(nn.Module):
    """Attention whose mask has parameters and lengths of its own."""

    def __init__(self, call):
        super().__init__()
        self.table = nn.Parameter(call.mask.relative.table)
        self.register_buffer("start", torch.tensor([0, 3, 7], dtype=torch.int32))

    def forward(self, x):
        sequences = Sequences(self.start, self.start)
        mask = MaskSpec(sequences=sequences, relative=Relative(table=self.table))
        return attend(x, x, x, mask, SCALE, None)


def test_exported_program_with_parts_of_a_mask(tmp_path):
    module = MaskedAttention(make_call("relative"))
    x = torch.randn(1, 7, 4, 8, dtype=torch.float64)
    file = tmp_path / "attention.pt2"
    torch.export.save(torch.export.export(module, (x,)), file)
    assert_close(torch.export.load(file).module()(x), module(x))


class ScriptedAttention(nn.Module):
    """What TorchScript can express: 4-D inputs, a tensor bias, or a mask by its parts."""

    def forward(self, query, key, value):
        full = attn_ops.memory_efficient_attention(query, key, value, scale=0.3)
        causal = torch.ops.attn_ops.attention(query, key, value, band_right=0)
        slopes = torch.ones(query.shape[2], dtype=query.dtype)
        near, _ = torch.ops.attn_ops.attention_with_lse(query, key, value, slopes=slopes)
        return full + causal + near


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
