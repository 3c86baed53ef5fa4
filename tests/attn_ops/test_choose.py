"""The choice of the operator, and the reasons it gives."""

import pytest
import torch

from attn_ops import AttentionBias, LowerTriangularMask, memory_efficient_attention
from attn_ops._choose import OPERATORS, choose
from attn_ops._inputs import Inputs

TENSOR = torch.randn(1, 2, 1, 4)


def inputs(tensor=TENSOR, attn_bias=None):
    return Inputs(tensor, tensor, tensor, attn_bias, 0.0, None, None)


@pytest.mark.parametrize("dtype", OPERATORS[0].dtypes)
def test_cpu_operator_takes_every_float(dtype):
    assert choose(inputs(TENSOR.to(dtype))).name == "cpuF"


def test_device_without_an_operator_is_refused_in_xformers_words():
    with pytest.raises(NotImplementedError) as raised:
        memory_efficient_attention(*[TENSOR.to("meta")] * 3, LowerTriangularMask())
    assert str(raised.value).splitlines() == [
        "No operator found for `memory_efficient_attention_forward` with inputs:",
        "     query       : shape=(1, 2, 1, 4) (torch.float32)",
        "     key         : shape=(1, 2, 1, 4) (torch.float32)",
        "     value       : shape=(1, 2, 1, 4) (torch.float32)",
        "     attn_bias   : <class 'attn_ops.fmha.attn_bias.LowerTriangularMask'>",
        "     p           : 0.0",
        "`cpuF` is not supported because:",
        "    device=meta (supported: {'cpu'})",
    ]


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn])
def test_dtype_without_an_operator_is_refused(dtype):
    tensor = TENSOR.to(dtype)
    with pytest.raises(NotImplementedError, match=rf"dtype={dtype} \(supported: "):
        memory_efficient_attention(tensor, tensor, tensor)


class UnknownMask(LowerTriangularMask):
    """A subclass that may mean anything."""


@pytest.mark.parametrize("attn_bias", [AttentionBias(), UnknownMask(), "causal", 3.0])
def test_kind_of_bias_without_an_operator_is_refused(attn_bias):
    with pytest.raises(NotImplementedError, match="attn_bias type is "):
        memory_efficient_attention(TENSOR, TENSOR, TENSOR, attn_bias)


def test_every_reason_is_given():
    reasons = OPERATORS[0].not_supported_reasons(inputs(TENSOR.to("meta").int(), "causal"))
    assert len(reasons) == 3
