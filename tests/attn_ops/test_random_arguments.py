"""Any mixture of arguments gives the right result or a named refusal, never a crash."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from attn_ops import (
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
    memory_efficient_attention,
)
from eager_attention import softmax_attention

EXTENTS = st.sampled_from([0, 1, 1, 2, 3, 5])
HEADS = st.sampled_from([1, 1, 2, 4])
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def rarely(draw, wrong, right):
    """Return what `wrong` draws one time in twelve, else `right`."""
    return draw(wrong) if draw(st.integers(0, 11)) == 0 else right


@st.composite
def tensors(draw, shape, dtype):
    """Draw a tensor of about this shape, dtype and layout."""
    shape = list(shape)
    if shape:
        axis = draw(st.integers(0, len(shape) - 1))
        shape[axis] = rarely(draw, EXTENTS, shape[axis])
    shape = rarely(draw, st.just(shape[1:]), shape)
    dtype = rarely(draw, st.sampled_from([torch.float32, torch.int32, torch.bool]), dtype)
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)
    layout = draw(st.sampled_from(["packed", "transposed", "expanded", "strided"]))
    if layout == "transposed" and tensor.dim() > 2:
        tensor = tensor.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "expanded" and tensor.dim() > 2:
        tensor = tensor.narrow(-2, 0, min(1, tensor.shape[-2])).expand_as(tensor)
    elif layout == "strided" and tensor.dim():
        wide = torch.cat([tensor, tensor], -1)
        tensor = rarely(draw, st.just(wide[..., ::2]), wide[..., : tensor.shape[-1]])
    return tensor


@st.composite
def calls(draw):
    """Draw (query, key, value, keyword arguments)."""
    batch, mq, mkv, heads, groups = (draw(x) for x in (EXTENTS, EXTENTS, EXTENTS, HEADS, HEADS))
    width, value_width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    ndim = draw(st.sampled_from([3, 4, 4, 5]))
    query_heads = {3: [], 4: [heads * groups], 5: [groups, heads]}[ndim]
    key_heads = {3: [], 4: [groups], 5: [groups, heads]}[ndim]
    dtype = draw(DTYPES)
    query = draw(tensors([batch, mq, *query_heads, width], dtype))
    key = draw(tensors([batch, mkv, *key_heads, width], dtype))
    value = draw(tensors([batch, mkv, *key_heads, value_width], dtype))
    bias_shape = [draw(st.sampled_from([1, n])) for n in (batch, *query_heads, mq, mkv)]
    bias_dtype = draw(st.sampled_from([dtype, torch.float32, torch.bool]))
    bottom_right = LowerTriangularFromBottomRightMask()
    biases = st.one_of(
        st.none(),
        st.sampled_from(
            [LowerTriangularMask(), bottom_right, bottom_right.make_local_attention(2)]
        ),
        tensors(bias_shape, bias_dtype),
        st.sampled_from(["causal", 1.0]) if draw(st.integers(0, 11)) == 0 else st.none(),
    )
    options = {
        "attn_bias": draw(biases),
        "scale": draw(st.sampled_from([None, None, 0.0, -0.5, 2])),
        "p": rarely(draw, st.sampled_from([-1.0, 2.0, float("nan")]), 0.0),
        "output_dtype": rarely(draw, st.sampled_from([torch.float32, torch.int8, "float32"]), None),
    }
    return query, key, value, options


def four_axes(tensor, ndim):
    return {3: lambda: tensor.unsqueeze(2), 4: lambda: tensor, 5: lambda: tensor.flatten(2, 3)}[
        ndim
    ]()


def expected_output(query, key, value, attn_bias, scale):
    ndim, (mq, mkv) = query.dim(), (query.shape[1], key.shape[1])
    if isinstance(attn_bias, torch.Tensor):
        heads = query.shape[2:-1]
        full = attn_bias.expand(query.shape[0], *heads, mq, mkv)
        bias = full.reshape(query.shape[0], math.prod(heads), mq, mkv)
        bias = bias if bias.dtype == torch.bool else bias.double()
    else:
        bias = None if attn_bias is None else attn_bias.materialize((mq, mkv), torch.float64)
    inputs = [four_axes(x.double(), ndim) for x in (query, key, value)]
    out = softmax_attention(*inputs, bias, scale)
    return out.reshape(*query.shape[:-1], value.shape[-1])


@pytest.mark.parametrize("requires_grad", [False, True])
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(call=calls())
def test_result_is_right_or_refused(requires_grad, call):
    query, key, value, options = call
    if requires_grad and query.is_floating_point():
        query = query.detach().requires_grad_()
    try:
        out = memory_efficient_attention(query, key, value, **options)
    except (ValueError, TypeError, NotImplementedError) as refusal:
        assert "memory_efficient_attention" in str(refusal)  # noqa: PT017  either outcome is right
        return
    assert out.dtype == (options["output_dtype"] or query.dtype)
    expected = expected_output(query, key, value, options["attn_bias"], options["scale"])
    tolerance = TOLERANCE[query.dtype]
    assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    if out.requires_grad:
        out.sum().backward()
        assert query.grad is not None
        assert query.grad.shape == query.shape
        assert query.grad.isfinite().all()
