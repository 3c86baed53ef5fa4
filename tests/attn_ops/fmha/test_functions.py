"""The forms of attention without autograd, and partial attention, against the one with autograd."""

import doctest

import pytest
import torch
from torch.testing import assert_close

from attn_ops import _attention, fmha
from attn_ops.fmha import (
    LowerTriangularMask,
    functions,
    memory_efficient_attention,
    memory_efficient_attention_backward,
    memory_efficient_attention_forward,
    memory_efficient_attention_forward_requires_grad,
    memory_efficient_attention_partial,
)
from eager_attention import make_inputs

SEED = torch.tensor([5, 6])
PACKED = fmha.attn_bias.BlockDiagonalCausalMask.from_seqlens([2, 3], [4, 3])


def in_layout(ndim, inputs):
    if ndim == 3:
        return [x[:, :, 0].detach().clone().requires_grad_() for x in inputs]
    if ndim == 5:
        return [x.detach().clone().unflatten(2, (2, 2)).requires_grad_() for x in inputs]
    return inputs


def log_sum_exp(query, key, bias=None):
    """Return the LSE [B, Hq, Mq] of 4-D inputs in eager torch."""
    key = key.repeat_interleave(query.shape[2] // key.shape[2], dim=2)
    scores = query.shape[-1] ** -0.5 * torch.einsum("bihk,bjhk->bhij", query, key)
    return (scores if bias is None else scores + bias).logsumexp(-1)


def gradients(outputs, inputs, seed=5):
    generator = torch.Generator().manual_seed(seed)
    cotangents = [torch.randn(x.shape, generator=generator).to(x) for x in outputs]
    return torch.autograd.grad(outputs, inputs, cotangents), cotangents


@pytest.mark.parametrize("ndim", [3, 4, 5])
def test_forward_is_not_recorded(ndim):
    inputs = in_layout(ndim, make_inputs(requires_grad=True))
    out = memory_efficient_attention_forward(*inputs, LowerTriangularMask(), scale=0.3)
    assert not out.requires_grad
    assert_close(
        out, memory_efficient_attention(*inputs, LowerTriangularMask(), scale=0.3).detach()
    )


@pytest.mark.parametrize(("ndim", "shape"), [(3, (2, 1, 5)), (4, (2, 4, 5)), (5, (2, 2, 2, 5))])
def test_lse_has_the_layout_of_the_inputs(ndim, shape):
    full = make_inputs()
    inputs = in_layout(ndim, full)
    out, lse = memory_efficient_attention_forward_requires_grad(*inputs)
    assert out.shape == (*inputs[0].shape[:-1], 6)
    assert lse.shape == shape
    expected = log_sum_exp(*full[:2])
    assert_close(lse.flatten(1, -2), expected[:, :1] if ndim == 3 else expected)
    assert not lse.requires_grad


def test_lse_of_sequences_is_packed():
    inputs = make_inputs(batch=1)
    out, lse = memory_efficient_attention_forward_requires_grad(*inputs, PACKED)
    assert lse.shape == (1, 4, 5)
    bias = PACKED.materialize((5, 7), torch.float64)
    assert_close(lse, log_sum_exp(*inputs[:2], bias))
    assert_close(out, memory_efficient_attention(*inputs, PACKED))


@pytest.mark.parametrize("ndim", [3, 4, 5])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_backward_has_the_gradients_of_autograd(ndim, p):
    inputs = in_layout(ndim, make_inputs(requires_grad=True))
    arguments = {"attn_bias": LowerTriangularMask(), "p": p, "scale": 0.4, "dropout_seed": SEED}
    out, lse = memory_efficient_attention_forward_requires_grad(*inputs, **arguments)

    torch.manual_seed(0)
    seed = torch.randint(2**62, (2,))
    torch.manual_seed(0)
    recorded = memory_efficient_attention(*inputs, LowerTriangularMask(), p, 0.4)
    expected, (grad,) = gradients([recorded], inputs)
    if p:
        out, lse = memory_efficient_attention_forward_requires_grad(
            *inputs, **{**arguments, "dropout_seed": seed}
        )
        assert_close(out, recorded.detach())
    found = memory_efficient_attention_backward(
        grad, out, lse, *inputs, **{**arguments, "dropout_seed": seed}
    )
    assert_close(found, expected)
    assert not found[0].requires_grad


def test_backward_through_the_lse():
    inputs = make_inputs(hkv=2, requires_grad=True)
    out, lse = memory_efficient_attention_partial(*inputs)
    expected, (grad, grad_lse) = gradients([out, lse], inputs)
    found = memory_efficient_attention_backward(
        grad, out.detach(), lse.detach(), *inputs, grad_lse=grad_lse
    )
    assert_close(found, expected)


def test_backward_of_keys_that_repeat_over_heads_has_an_entry_for_each():
    query, key, value = in_layout(5, make_inputs())
    narrow = [x.detach()[:, :, :, :1] for x in (key, value)]
    repeated = [x.expand(-1, -1, -1, 2, -1) for x in narrow]
    out, lse = memory_efficient_attention_forward_requires_grad(query, *repeated)
    grad = torch.randn_like(out)
    found = memory_efficient_attention_backward(grad, out, lse, query, *repeated)
    separate = [x.contiguous() for x in repeated]
    assert [x.shape for x in found] == [x.shape for x in (query, *separate)]
    assert_close(found, memory_efficient_attention_backward(grad, out, lse, query, *separate))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_takes_a_gradient_of_another_dtype(dtype):
    inputs = [x.to(dtype) for x in make_inputs()]
    out, lse = memory_efficient_attention_forward_requires_grad(*inputs)
    grad = torch.randn(out.shape)
    found = memory_efficient_attention_backward(grad, out, lse, *inputs)
    assert [x.dtype for x in found] == [dtype] * 3
    expected = memory_efficient_attention_backward(grad.to(dtype), out, lse, *inputs)
    assert_close(found, expected, rtol=0, atol=0)


WRONG_RESULTS = {
    "grad": (lambda r: {**r, "grad": r["grad"][:, :4]}, "expected grad [2, 5, 4, 6]"),
    "grad rank": (lambda r: {**r, "grad": r["grad"][0]}, "expected grad [2, 5, 4, 6]"),
    "output": (lambda r: {**r, "output": r["output"][..., :5]}, "expected output [2, 5, 4, 6]"),
    "lse": (lambda r: {**r, "lse": r["lse"].mT}, "expected lse [2, 4, 5]"),
    "lse device": (lambda r: {**r, "lse": r["lse"].to("meta")}, "on cpu"),
    "lse dtype": (lambda r: {**r, "lse": r["lse"].float()}, "expected lse of torch.float64"),
    "grad_lse": (lambda r: {**r, "grad_lse": r["lse"][:1]}, "expected grad_lse [2, 4, 5]"),
    "no seed": (lambda r: {**r, "p": 0.5}, "expected the dropout_seed of the forward"),
    "seed shape": (lambda r: {**r, "p": 0.5, "dropout_seed": SEED[:1]}, "int64 [2] on the CPU"),
    "seed dtype": (lambda r: {**r, "p": 0.5, "dropout_seed": SEED.int()}, "int64 [2] on the CPU"),
}


@pytest.mark.parametrize("case", WRONG_RESULTS)
def test_results_that_do_not_fit_the_inputs_are_refused(case):
    change, message = WRONG_RESULTS[case]
    inputs = dict(zip(("query", "key", "value"), make_inputs(), strict=True))
    out, lse = memory_efficient_attention_forward_requires_grad(**inputs)
    arguments = change({"grad": out, "output": out, "lse": lse, **inputs})
    with pytest.raises(ValueError, match="memory_efficient_attention") as raised:
        memory_efficient_attention_backward(**arguments)
    assert message in str(raised.value)


def test_dropout_without_a_seed_is_drawn_from_torch():
    inputs = make_inputs(mq=16, mkv=16)
    torch.manual_seed(3)
    out = memory_efficient_attention_forward(*inputs, p=0.5)
    torch.manual_seed(3)
    assert torch.equal(out, memory_efficient_attention(*inputs, p=0.5))
    assert not torch.equal(out, memory_efficient_attention_forward(*inputs, p=0.5))


@pytest.mark.parametrize("ndim", [3, 4, 5])
def test_partial_is_differentiable_through_both_results(ndim):
    full = make_inputs(requires_grad=True)
    inputs = in_layout(ndim, full)
    out, lse = memory_efficient_attention_partial(*inputs)
    assert_close(out, memory_efficient_attention(*inputs))
    flat = [x.unsqueeze(2) if ndim == 3 else x for x in inputs]
    flat = [x.flatten(2, 3) if ndim == 5 else x for x in flat]
    expected = log_sum_exp(*flat[:2]).reshape(lse.shape)
    assert_close(lse, expected)
    found, cotangents = gradients([out, lse], inputs)
    recorded = memory_efficient_attention(*inputs)
    objective = (recorded * cotangents[0]).sum() + (expected * cotangents[1]).sum()
    assert_close(found, torch.autograd.grad(objective, inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_partial_output_is_float32_unless_told(dtype):
    inputs = [x.to(dtype) for x in make_inputs()]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    out, lse = memory_efficient_attention_partial(*inputs)
    assert (out.dtype, lse.dtype) == (wide, wide)
    assert memory_efficient_attention_partial(*inputs, output_dtype=dtype)[0].dtype == dtype


@pytest.mark.parametrize(
    "op", [None, fmha.cpu.FwOp, (fmha.cpu.FwOp, None), (fmha.cpu.FwOp, fmha.cpu.BwOp)]
)
def test_partial_takes_an_operator_alone_or_a_pair(op):
    inputs = make_inputs(requires_grad=True)
    out, _ = memory_efficient_attention_partial(*inputs, op=op)
    out.sum().backward()
    assert_close(out, memory_efficient_attention(*inputs))


CALLS = {
    "forward": (memory_efficient_attention_forward, fmha.cutlass.FwOp),
    "forward_requires_grad": (
        memory_efficient_attention_forward_requires_grad,
        fmha.flash.FwOp,
    ),
    "backward": (
        lambda *inputs, **named: memory_efficient_attention_backward(*inputs, *inputs, **named),
        fmha.flash.BwOp,
    ),
    "partial": (memory_efficient_attention_partial, fmha.flash.FwOp),
}


@pytest.mark.parametrize("name", CALLS)
def test_operator_that_is_not_there_is_refused(name):
    function, op = CALLS[name]
    with pytest.raises(ValueError, match=f"`{op.NAME}` is not supported because:"):
        function(*make_inputs(), op=op)


@pytest.mark.parametrize("name", CALLS)
def test_wrong_inputs_are_refused_by_name(name):
    function, _ = CALLS[name]
    query, key, value = make_inputs()
    with pytest.raises(ValueError, match="Incompatible shapes for attention inputs"):
        function(query, key, value[:, :3])


def test_autocast_casts_the_inputs():
    inputs = [x.float() for x in make_inputs()]
    with torch.autocast("cpu"):
        out, lse = memory_efficient_attention_forward_requires_grad(*inputs)
        dq, *_ = memory_efficient_attention_backward(torch.ones_like(out), out, lse, *inputs)
        partial, _ = memory_efficient_attention_partial(*inputs)
    assert out.dtype == dq.dtype == torch.bfloat16
    assert partial.dtype == torch.float32


@pytest.mark.parametrize("module", [_attention, functions], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (1, 4, 5, 7), (2, 1, 5, 1), (1, 1, 1, 7)])
def test_backward_returns_the_gradient_of_the_bias(shape):
    query, key, value = make_inputs(requires_grad=True)
    shape = tuple(
        size if size == 1 else full
        for size, full in zip(
            shape, (*query.shape[:1], 4, query.shape[1], key.shape[1]), strict=True
        )
    )
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(7)).to(query).requires_grad_()
    out = memory_efficient_attention(query, key, value, bias)
    grad = torch.ones_like(out)
    expected = torch.autograd.grad(out, (query, key, value, bias), grad)
    out, lse = memory_efficient_attention_forward_requires_grad(query, key, value, bias)
    found = memory_efficient_attention_backward(
        grad, out, lse, query, key, value, bias, needs_bias_gradient=True
    )
    assert_close(found, expected)


def test_backward_returns_a_gradient_for_every_index_of_an_expanded_bias():
    query, key, value = make_inputs()
    bias = torch.randn(1, 4, 1, 7, dtype=query.dtype).expand(2, 4, 5, 7)
    out, lse = memory_efficient_attention_forward_requires_grad(query, key, value, bias)
    found, expected = (
        memory_efficient_attention_backward(
            out, out, lse, query, key, value, given, needs_bias_gradient=True
        )
        for given in (bias, bias.contiguous())
    )
    assert_close(found, expected)


@pytest.mark.parametrize("attn_bias", [None, LowerTriangularMask(), torch.ones(1, 1, 1, 1) > 0])
def test_backward_needs_a_bias_for_its_gradient(attn_bias):
    query, key, value = make_inputs()
    out, lse = memory_efficient_attention_forward_requires_grad(query, key, value, attn_bias)
    with pytest.raises(ValueError, match="floating-point tensor attn_bias"):
        memory_efficient_attention_backward(
            out, out, lse, query, key, value, attn_bias, needs_bias_gradient=True
        )
