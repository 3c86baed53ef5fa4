"""The operator classes: what each says about itself, and which calls it takes."""

import pytest
import torch

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

CUDA_OPERATORS = [cutlass.FwOp, cutlass.BwOp, flash.FwOp, flash.BwOp]
TENSOR = torch.randn(1, 2, 1, 4)


def test_every_operator_has_its_direction():
    for module in (cpu, cutlass, flash):
        assert issubclass(module.FwOp, AttentionFwOpBase)
        assert issubclass(module.BwOp, AttentionBwOpBase)
        assert issubclass(module.FwOp, AttentionOpBase)
        assert module.FwOp.OPERATOR_CATEGORY == "memory_efficient_attention"


def test_cpu_operators_are_available():
    for operator in (cpu.FwOp, cpu.BwOp):
        assert operator.is_available()
        assert operator.info() == "available"
        assert operator.supports(Inputs(query=TENSOR, key=TENSOR, value=TENSOR))
        assert operator.supports(Inputs(TENSOR, TENSOR, TENSOR, LowerTriangularMask(), p=0.5))


@pytest.mark.parametrize("operator", CUDA_OPERATORS)
def test_cuda_operators_do_not_pretend_to_be_there(operator):
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
