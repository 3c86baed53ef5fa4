"""The gradient function: what it differentiates, and what it refuses."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from attn_ops import LowerTriangularMask, memory_efficient_attention
from attn_ops._autograd import attend, attend_with_lse, gradients
from attn_ops.mask import ANCHOR_BOTTOM_RIGHT, Band, MaskSpec
from eager_attention import make_inputs
from masked_attention import MASKS, SCALE, eager_attention, make_call, parameters

CAUSAL = Band(right=0, anchor=ANCHOR_BOTTOM_RIGHT)


def attend_call(call):
    return attend_with_lse(call.query, call.key, call.value, call.mask, SCALE, None)


def out_and_lse(query, key, value, bias=None):
    return attend_with_lse(query, key, value, MaskSpec(CAUSAL, bias), 0.3, None)


def test_gradcheck_of_output_and_lse_together():
    inputs = make_inputs(1, 3, 4, 2, 1, width=3, value_width=2, requires_grad=True)
    bias = torch.randn(1, 2, 1, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(out_and_lse, [*inputs, bias])


@pytest.mark.parametrize("name", MASKS)
def test_every_gradient_of_both_results_matches_eager(name):
    call = make_call(name, requires_grad=True)
    found, expected = attend_call(call), eager_attention(call)
    assert_close(found, expected)
    grad_outputs = [torch.randn_like(x) for x in expected]
    assert_close(
        torch.autograd.grad(found, call.tensors, grad_outputs),
        torch.autograd.grad(expected, call.tensors, grad_outputs),
    )


@pytest.mark.parametrize("index", range(4), ids=["bias", "slopes", "table", "sink"])
def test_mask_alone_is_recorded(index):
    call = make_call("everything")
    parameter = parameters(call.mask)[index].requires_grad_()
    out = attend(call.query, call.key, call.value, call.mask, SCALE, None)
    (found,) = torch.autograd.grad(out.square().sum(), parameter)
    (expected,) = torch.autograd.grad(eager_attention(call)[0].square().sum(), parameter)
    assert_close(found, expected)


def test_lengths_changed_before_the_backward_are_noticed():
    call = make_call("packed", requires_grad=True)
    out, _ = attend_call(call)
    assert call.mask.sequences is not None
    call.mask.sequences.q_start[1] = 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_lse_alone_has_a_gradient():
    inputs = make_inputs(1, 3, 4, 2, 2, width=3, value_width=2, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: out_and_lse(*x)[1], inputs)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (3,), (1, 3)])
def test_only_wanted_gradients_are_made(wanted):
    tensors = [*make_inputs(), torch.randn(2, 4, 5, 7, dtype=torch.float64)]
    for index in wanted:
        tensors[index].requires_grad_()
    memory_efficient_attention(*tensors).sum().backward()
    assert [x.grad is not None for x in tensors] == [index in wanted for index in range(4)]


def test_partial_results_merge_to_the_exact_gradient():
    """Chunks of keys, weighted by their LSE: the gradient goes through both results."""
    inputs = make_inputs(requires_grad=True)
    query, key, value = inputs
    whole = attend(query, key, value, MaskSpec(), 0.3, None)
    parts = [
        attend_with_lse(query, key[:, chunk], value[:, chunk], MaskSpec(), 0.3, None)
        for chunk in (slice(3), slice(3, 7))
    ]
    weights = torch.softmax(torch.stack([lse for _, lse in parts]), 0)
    merged = sum(
        out * weight.mT.unsqueeze(-1) for (out, _), weight in zip(parts, weights, strict=True)
    )
    assert_close(merged, whole)
    assert_close(
        torch.autograd.grad(merged.square().sum(), inputs),
        torch.autograd.grad(whole.square().sum(), inputs),
    )


def test_output_of_another_dtype_has_gradients():
    inputs = make_inputs(dtype=torch.bfloat16, requires_grad=True)
    out, lse = attend_with_lse(*inputs, MaskSpec(), 0.3, torch.float32)
    assert out.dtype == lse.dtype == torch.float32
    narrow = attend(*inputs, MaskSpec(), 0.3, None)
    found = torch.autograd.grad(out.sum(), inputs)
    assert_close(found, torch.autograd.grad(narrow.float().sum(), inputs), atol=0.02, rtol=0.02)


def test_gradients_without_autograd():
    call = make_call("everything", requires_grad=True)
    out, lse = attend_call(call)
    grad_out, grad_lse = torch.randn_like(out), torch.randn_like(lse)
    expected = torch.autograd.grad((out, lse), call.tensors, (grad_out, grad_lse))
    saved = (grad_out, out, lse, call.query, call.key, call.value, call.mask, SCALE)
    found = gradients(*saved, grad_lse=grad_lse, needed=(True,) * 7)
    assert_close(found, expected)
    assert not any(gradient is None or gradient.requires_grad for gradient in found)
    none, grad_key, *rest = gradients(*saved, grad_lse=grad_lse, needed=(False, True))
    assert none is None
    assert rest == []
    assert_close(grad_key, expected[1])


def test_no_grad_records_nothing():
    inputs = make_inputs(requires_grad=True)
    with torch.no_grad():
        assert not memory_efficient_attention(*inputs).requires_grad
    with torch.inference_mode():
        assert memory_efficient_attention(*inputs).is_inference()


def test_public_operator_has_the_same_gradient():
    inputs = make_inputs(requires_grad=True)
    out = torch.ops.attn_ops.attention(*inputs, band_right=0)
    expected = memory_efficient_attention(*inputs, LowerTriangularMask())
    assert_close(out, expected)
    for found, wanted in zip(
        torch.autograd.grad(out.sum(), inputs),
        torch.autograd.grad(expected.sum(), inputs),
        strict=True,
    ):
        assert_close(found, wanted)


def test_second_derivative_is_refused():
    query, key, value = make_inputs(requires_grad=True)
    out = memory_efficient_attention(query, key, value)
    (gradient,) = torch.autograd.grad(out.sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match="at most one derivative"):
        gradient.sum().backward()


# Torch scripts its own decompositions when forward mode is first used.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("mask", [None, LowerTriangularMask()])
def test_forward_mode_is_refused(mask):
    query, key, value = make_inputs()
    with pytest.raises(NotImplementedError, match="forward mode"):
        torch.func.jvp(
            lambda x: memory_efficient_attention(x, key, value, mask), (query,), (query,)
        )
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode"):
        memory_efficient_attention(forward_ad.make_dual(query, query), key, value, mask)


# Torch scripts its own decompositions when forward mode is first used.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_what_refusals_recommend_has_every_derivative():
    query, _, _ = make_inputs(requires_grad=True)

    def attend(x):
        return torch.nn.functional.scaled_dot_product_attention(x, x, x).sum()

    with sdpa_kernel(SDPBackend.MATH):
        torch.func.jvp(attend, (query,), (query,))
        (gradient,) = torch.autograd.grad(attend(query), query, create_graph=True)
        gradient.square().sum().backward()
    assert query.grad is not None


def test_functional_gradient():
    query, key, value = make_inputs()
    found = torch.func.grad(lambda x: memory_efficient_attention(x, key, value).sum())(query)
    leaf = query.clone().requires_grad_()
    memory_efficient_attention(leaf, key, value).sum().backward()
    assert_close(found, leaf.grad)


def test_gradients_per_sample():
    inputs = [torch.stack([x, 2 * x]) for x in make_inputs()]

    def loss(query, key, value):
        return memory_efficient_attention(query, key, value, LowerTriangularMask()).square().sum()

    gradient = torch.func.grad(loss, argnums=(0, 1, 2))
    found = torch.vmap(gradient)(*inputs)
    for i in range(2):
        expected = gradient(*[x[i] for x in inputs])
        assert_close([x[i] for x in found], list(expected))


def test_vmap_without_gradient_loops():
    inputs = [torch.stack([x, 2 * x]) for x in make_inputs()]
    out = torch.vmap(memory_efficient_attention)(*inputs)
    for i in range(2):
        assert_close(out[i], memory_efficient_attention(*[x[i] for x in inputs]))


def test_checkpointing_a_mask_with_parameters():
    call = make_call("everything", requires_grad=True)
    out, lse = checkpoint(attend_call, call, use_reentrant=False)
    expected = attend_call(call)
    assert_close((out, lse), expected)
    assert_close(
        torch.autograd.grad(out.square().sum() + lse.sum(), call.tensors),
        torch.autograd.grad(expected[0].square().sum() + expected[1].sum(), call.tensors),
    )


def test_checkpointing_redraws_the_same_dropout():
    inputs = make_inputs(requires_grad=True)
    torch.manual_seed(2)
    out = memory_efficient_attention(*inputs, p=0.5)
    expected = torch.autograd.grad(out.sum(), inputs)
    torch.manual_seed(2)
    again = checkpoint(memory_efficient_attention, *inputs, p=0.5, use_reentrant=False)
    assert_close(again, out)
    assert_close(torch.autograd.grad(again.sum(), inputs), expected)
