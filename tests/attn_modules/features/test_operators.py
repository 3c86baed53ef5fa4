"""The operators of attention by features: what torch asks of them, and what they allocate."""

import pytest
import torch
from torch.testing import assert_close

from allocated_elements import AllocatedElements
from attn_modules._features.call import FeatureCall
from attn_modules._features.operators import feature_attention
from attn_modules._features.prefix_sums import causal_backward, causal_forward
from attn_modules._features.total_sums import total_backward, total_forward

operators = torch.ops.attn_modules
causal_or_not = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])


def inputs(rows, *, width=6, vectors=4, heads=3):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, rows, heads, width, generator=generator) for _ in range(3))
    keep = torch.rand(2, rows, 1, 1, generator=generator) > 0.3
    return q, k, v, keep, torch.randn(width, vectors, generator=generator)


@causal_or_not
@pytest.mark.parametrize("kind", ["positive", "hyperbolic", "relu"])
def test_operators_are_well_formed(kind, causal):
    q, k, v, keep, projection = inputs(9)
    arguments = (kind, 0.5, causal)
    forward = (*(x.requires_grad_() for x in (q, k, v)), keep, projection, *arguments)
    torch.library.opcheck(operators.feature_attention.default, forward)
    tensors = [x.detach() for x in (q, k, v, keep, projection)]
    results = operators.feature_attention(*tensors, *arguments)
    backward = (torch.ones_like(results[0]), *tensors, *results, *arguments)
    torch.library.opcheck(operators.feature_attention_backward.default, backward)


@causal_or_not
@pytest.mark.parametrize("kind", ["positive", "hyperbolic", "relu", "elu", "exp"])
def test_second_derivatives_are_refused(kind, causal):
    q, k, v, keep, projection = inputs(9)
    if kind in ("elu", "exp"):
        projection = None
    options = {"kind": kind, "scale": 0.5, "causal": causal}

    def loss(q):
        return feature_attention(q, k, v, keep, projection, **options).out.square().sum()

    q.requires_grad_()
    (grad,) = torch.autograd.grad(loss(q), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="expected at most one derivative"):
        grad.square().sum().backward()
    with pytest.raises(NotImplementedError, match="expected at most one derivative"):
        torch.func.grad(lambda q: torch.func.grad(loss)(q).square().sum())(q.detach())


@causal_or_not
def test_operators_take_inputs_of_any_strides(causal):
    q, k, v, keep, projection = inputs(9)
    options = {"kind": "hyperbolic", "scale": 0.5, "causal": causal}
    expected = feature_attention(q, k, v, keep, projection, **options).out
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    out = feature_attention(*strided, keep, projection.T.contiguous().T, **options).out
    assert_close(out, expected)


def test_no_rows_are_fine():
    q, k, v, _, projection = inputs(0)
    options = {"kind": "hyperbolic", "scale": 0.5, "causal": True}
    assert feature_attention(q, k, v, None, projection, **options).out.shape == q.shape


@causal_or_not
def test_memory_is_that_of_a_block_forward_and_backward(causal):
    # The watch does not see into operators, so their loops are run without one.
    rows, vectors = 4096, 32
    q, k, v, _, projection = (x[:1] if x.dim() == 4 else x for x in inputs(rows, vectors=vectors))
    call = FeatureCall(q, k, v, None, projection, "hyperbolic", 0.5)
    out, total = torch.empty_like(q), q.new_empty(*q.shape[:3], 1)
    grads = [torch.empty_like(x) for x in (q, k, v)]
    with AllocatedElements() as allocated:
        if causal:
            causal_forward(call, out, total)
            causal_backward(call, out, total, torch.ones_like(out), grads)
        else:
            state = total_forward(call, out, total)
            total_backward(call, state, out, total, torch.ones_like(out), grads)
    assert allocated.largest <= max(1024 * 2 * vectors, q.numel()), allocated.operation
    assert allocated.largest < rows * 3 * 2 * vectors / 4
