"""The operator classes: what each says about itself, and which calls it takes."""

import pytest
import torch

from attn_ops import _native
from attn_ops._support_matrix import describe_call
from attn_ops.fmha import (
    AttentionBwOpBase,
    AttentionFwOpBase,
    AttentionOpBase,
    Inputs,
    LowerTriangularMask,
    cpu,
    cutlass,
    flash,
)

WHOLE_OPERATORS = [cpu.FwOp, cpu.BwOp, *([cutlass.FwOp, cutlass.BwOp] * _native.has_cuda())]
ABSENT_OPERATORS = [flash.FwOp, flash.BwOp, *([] if _native.has_cuda() else [cutlass.FwOp])]
TENSOR = torch.randn(1, 2, 1, 4)


def test_every_operator_has_its_direction():
    for module in (cpu, cutlass, flash):
        assert issubclass(module.FwOp, AttentionFwOpBase)
        assert issubclass(module.BwOp, AttentionBwOpBase)
        assert issubclass(module.FwOp, AttentionOpBase)
        assert module.FwOp.OPERATOR_CATEGORY == "memory_efficient_attention"


@pytest.mark.parametrize("operator", WHOLE_OPERATORS)
def test_operators_of_this_build_take_masks_and_dropout(operator):
    assert operator.is_available()
    assert operator.info() == "available"
    for device in operator.SUPPORTED_DEVICES:
        assert operator.supports(describe_call(device))
        assert operator.supports(describe_call(device, attn_bias=LowerTriangularMask(), p=0.5))


@pytest.mark.skipif(not _native.has_cuda(), reason="built without CUDA kernels")
def test_cuda_operators_say_what_they_do_not_take():
    wide = describe_call("cuda", torch.float64, value_shape=(1, 8, 2, 257))
    assert cutlass.BwOp.not_supported_reasons(wide) == [
        "dtype=torch.float64 (supported: {torch.float32, torch.bfloat16, torch.float16})",
        "max(query.shape[-1], value.shape[-1]) > 256",
    ]


@pytest.mark.parametrize("operator", ABSENT_OPERATORS)
def test_operators_that_were_not_built_do_not_pretend_to_be_there(operator):
    assert not operator.is_available()
    assert operator.info() == "unavailable"
    half = TENSOR.half()
    reasons = operator.not_supported_reasons(Inputs(half, half, half))
    assert reasons == [
        "device=cpu (supported: {'cuda'})",
        "operator wasn't built - see `python -m attn_ops.info` for more info",
    ]
    assert not operator.supports(Inputs(half, half, half))


def test_too_wide_heads_are_refused():
    wide = torch.empty(1, 1, 1, 257, dtype=torch.half)
    reasons = flash.FwOp.not_supported_reasons(Inputs(wide[..., :8], wide[..., :8], wide))
    assert "max(query.shape[-1], value.shape[-1]) > 256" in reasons


class PlainOp(AttentionBwOpBase):
    """Takes float32 on the CPU and not one option."""

    OPERATOR = len
    SUPPORTED_DEVICES = ("cpu",)
    SUPPORTED_DTYPES = (torch.float32,)
    SUPPORTED_ATTN_BIAS_TYPES = (type(None), torch.Tensor)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"p": 0.1}, "dropout > 0.0"),
        ({"scale": 1.0}, "has custom scale"),
        ({"value": TENSOR[..., :3]}, "query.shape[-1] != value.shape[-1]"),
        ({"output_dtype": torch.half}, "Custom output dtype not supported"),
        ({"is_partial": True}, "Partial attention not supported"),
        ({"query": TENSOR[:, :, None]}, "operator does not support BMGHK format"),
        ({"attn_bias": LowerTriangularMask()}, f"attn_bias type is {LowerTriangularMask}"),
        (
            {"attn_bias": TENSOR.clone().requires_grad_()},
            "Computing the bias gradient is not supported (attn_bias.requires_grad = True)",
        ),
    ],
    # Not what tensors print: every process of pytest-xdist must find the same names.
    ids=lambda of: next(iter(of)) if isinstance(of, dict) else "reason",
)
def test_option_that_an_operator_lacks_is_its_reason(options, reason):
    call = {"query": TENSOR, "key": TENSOR, "value": TENSOR}
    assert PlainOp.supports(Inputs(**call, attn_bias=TENSOR, output_dtype=torch.float32))
    assert PlainOp.not_supported_reasons(Inputs(**{**call, **options})) == [reason]
