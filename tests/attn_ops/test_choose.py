"""The choice of the operators, and the reasons it gives."""

import pytest
import torch

from attn_ops import AttentionBias, LowerTriangularMask, _native, fmha, memory_efficient_attention
from attn_ops._choose import ALL_BW_OPS, ALL_FW_OPS, choose_backward, choose_forward
from attn_ops.fmha import Inputs, cpu, cutlass, flash

TENSOR = torch.randn(1, 2, 1, 4)
NOT_BUILT = "    operator wasn't built - see `python -m attn_ops.info` for more info"
NOT_BUILT_CUTLASS = [] if _native.has_cuda() else [NOT_BUILT]
ARGUMENTS = [
    "     query       : shape=(1, 2, 1, 4) (torch.float32)",
    "     key         : shape=(1, 2, 1, 4) (torch.float32)",
    "     value       : shape=(1, 2, 1, 4) (torch.float32)",
]


def inputs(tensor=TENSOR, attn_bias=None):
    return Inputs(tensor, tensor, tensor, attn_bias)


@pytest.mark.parametrize("dtype", cpu.FwOp.SUPPORTED_DTYPES)
def test_cpu_operators_take_every_float(dtype):
    assert choose_forward(inputs(TENSOR.to(dtype))) is cpu.FwOp
    assert choose_backward(inputs(TENSOR.to(dtype))) is cpu.BwOp


def test_device_without_an_operator_is_refused_in_xformers_words():
    with pytest.raises(NotImplementedError) as raised:
        memory_efficient_attention(*[TENSOR.to("meta")] * 3, LowerTriangularMask())
    assert str(raised.value).splitlines() == [
        "No operator found for `memory_efficient_attention_forward` with inputs:",
        *ARGUMENTS,
        f"     attn_bias   : {LowerTriangularMask}",
        "     p           : 0.0",
        "`cpuF` is not supported because:",
        "    device=meta (supported: {'cpu'})",
        "`cutlassF` is not supported because:",
        "    device=meta (supported: {'cuda'})",
        *NOT_BUILT_CUTLASS,
        "`fa2F` is not supported because:",
        "    device=meta (supported: {'cuda'})",
        "    dtype=torch.float32 (supported: {torch.float16, torch.bfloat16})",
        NOT_BUILT,
    ]


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn])
def test_dtype_without_an_operator_is_refused(dtype):
    tensor = TENSOR.to(dtype)
    with pytest.raises(NotImplementedError, match=rf"dtype={dtype} \(supported: "):
        memory_efficient_attention(tensor, tensor, tensor)


class UnknownMask(LowerTriangularMask):
    """A subclass that may mean anything."""


@pytest.mark.parametrize("attn_bias", [AttentionBias(), UnknownMask()])
def test_kind_of_bias_without_an_operator_is_refused(attn_bias):
    with pytest.raises(NotImplementedError, match="attn_bias type is ") as raised:
        memory_efficient_attention(TENSOR, TENSOR, TENSOR, attn_bias)
    assert f"{type(attn_bias)} (supported: None, tensors, and the classes of" in str(raised.value)


def test_kind_of_bias_within_another_is_named():
    attn_bias = UnknownMask().add_bias(fmha.attn_bias.AlibiBias.for_heads(1))
    with pytest.raises(NotImplementedError, match=f"attn_bias type is {UnknownMask} "):
        memory_efficient_attention(TENSOR, TENSOR, TENSOR, attn_bias)


def test_parameter_is_a_tensor():
    bias = torch.nn.Parameter(torch.zeros(1, 1, 2, 2))
    memory_efficient_attention(TENSOR, TENSOR, TENSOR, bias).sum().backward()
    assert bias.grad is not None


def test_every_reason_is_given():
    reasons = cpu.FwOp.not_supported_reasons(inputs(TENSOR.to("meta").int(), "causal"))
    assert len(reasons) == 3


@pytest.mark.parametrize(
    "op", [(cpu.FwOp, cpu.BwOp), (None, cpu.BwOp), (cpu.FwOp, None), (None,) * 2]
)
def test_named_operators_that_fit_are_used(op):
    query = TENSOR.clone().requires_grad_()
    out = memory_efficient_attention(query, query, query, op=op)
    assert torch.equal(out, memory_efficient_attention(query, query, query))
    out.sum().backward()


def test_named_operator_that_does_not_fit_is_refused_in_xformers_words():
    with pytest.raises(ValueError, match="does not support inputs") as raised:
        memory_efficient_attention(
            TENSOR, TENSOR, TENSOR, p=0.5, op=fmha.MemoryEfficientAttentionCutlassOp
        )
    assert str(raised.value).splitlines() == [
        "Operator `memory_efficient_attention` does not support inputs:",
        *ARGUMENTS,
        "     attn_bias   : <class 'NoneType'>",
        "     p           : 0.5",
        "`cutlassF` is not supported because:",
        "    device=cpu (supported: {'cuda'})",
        *NOT_BUILT_CUTLASS,
    ]


def test_named_backward_is_asked_only_if_a_gradient_is_wanted():
    op = (None, flash.BwOp)
    memory_efficient_attention(TENSOR, TENSOR, TENSOR, op=op)
    with pytest.raises(ValueError, match=r"memory_efficient_attention_backward.*\n(.*\n)*`fa2B`"):
        memory_efficient_attention(TENSOR.clone().requires_grad_(), TENSOR, TENSOR, op=op)


@pytest.mark.parametrize(
    "op", ["cutlass", cpu.FwOp, (cpu.FwOp,), (cpu.BwOp, cpu.FwOp), (cpu.FwOp(), None), (int, None)]
)
def test_what_is_no_pair_of_operators_is_refused(op):
    with pytest.raises(TypeError, match=r"memory_efficient_attention: expected .*operator"):
        memory_efficient_attention(TENSOR, TENSOR, TENSOR, op=op)


def test_pairs_of_xformers_are_those_operators():
    assert fmha.MemoryEfficientAttentionCutlassOp == (cutlass.FwOp, cutlass.BwOp)
    assert fmha.MemoryEfficientAttentionFlashAttentionOp == (flash.FwOp, flash.BwOp)
    assert fmha.MemoryEfficientAttentionCutlassFwdFlashBwOp == (cutlass.FwOp, flash.BwOp)
    assert {op.NAME for op in (*ALL_FW_OPS, *ALL_BW_OPS)} == {
        *("cpuF", "fa2F", "cutlassF"),
        *("cpuB", "fa2B", "cutlassB"),
    }
