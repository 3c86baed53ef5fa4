"""Autocast: the dtypes that torch's scaled_dot_product_attention has under it."""

import pytest
import torch
from torch.testing import assert_close

from attn_ops import LowerTriangularMask, memory_efficient_attention
from attn_ops._autograd import attend, attend_with_lse
from attn_ops.mask import MaskSpec, Relative
from eager_attention import make_inputs, softmax_attention


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("attn_bias", [None, LowerTriangularMask()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inputs_are_cast_and_gradients_cast_back(dtype, attn_bias, requires_grad):
    inputs = make_inputs(dtype=torch.float32, requires_grad=requires_grad)
    inputs[1] = inputs[1].half()
    with torch.autocast("cpu", dtype=dtype):
        out = memory_efficient_attention(*inputs, attn_bias)
    assert out.dtype == dtype
    assert_close(out, memory_efficient_attention(*[x.to(dtype) for x in inputs], attn_bias))
    if requires_grad:
        gradients = torch.autograd.grad(out.sum(), inputs)
        assert [x.dtype for x in gradients] == [x.dtype for x in inputs]


@pytest.mark.parametrize("bias_dtype", [torch.float32, torch.float16, torch.bool])
def test_bias_is_cast_only_if_it_could_not_be_read(bias_dtype):
    inputs = make_inputs(dtype=torch.float32)
    bias = (torch.rand(1, 4, 5, 7) > 0.3).to(bias_dtype)
    with torch.autocast("cpu"):
        out = memory_efficient_attention(*inputs, bias)
    assert out.dtype == torch.bfloat16
    assert_close(out.float(), softmax_attention(*inputs, bias), atol=3e-2, rtol=3e-2)


def test_float64_is_left_alone():
    with torch.autocast("cpu"):
        assert memory_efficient_attention(*make_inputs()).dtype == torch.float64


def test_output_dtype_wins():
    inputs = make_inputs(dtype=torch.float32)
    with torch.autocast("cpu"):
        out = memory_efficient_attention(*inputs, output_dtype=torch.float32)
    assert out.dtype == torch.float32


def test_public_operator_is_cast():
    inputs = make_inputs(dtype=torch.float32)
    with torch.autocast("cpu"):
        assert torch.ops.attn_ops.attention(*inputs).dtype == torch.bfloat16


@pytest.mark.parametrize("requires_grad", [False, True])
def test_parameters_of_a_mask_are_cast_only_if_they_could_not_be_read(requires_grad):
    inputs = make_inputs(dtype=torch.float32, requires_grad=requires_grad)
    table = torch.randn(4, 5, dtype=torch.float16, requires_grad=requires_grad)
    mask = MaskSpec(relative=Relative(torch.rand(4), table), sink=torch.randn(4).half())
    with torch.autocast("cpu"):
        out, lse = attend_with_lse(*inputs, mask, None, None)
        assert_close(attend(*inputs, mask, None, None), out)
    assert out.dtype == torch.bfloat16
    wide = MaskSpec(relative=Relative(mask.relative.slopes, table.float()), sink=mask.sink.float())
    expected = attend_with_lse(*inputs, wide, None, None)
    assert_close((out.float(), lse), expected, atol=3e-2, rtol=3e-2)
    if requires_grad:
        (gradient,) = torch.autograd.grad(out.sum(), table)
        assert gradient.dtype == torch.float16
