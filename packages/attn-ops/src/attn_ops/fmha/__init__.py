"""Attention, its masks and its operators, under the names of `xformers.ops.fmha`."""

from typing import TYPE_CHECKING

from attn_ops import _absent
from attn_ops import _flops as _flops  # registers its formulas
from attn_ops import _position_op as _position_op  # registers its rules
from attn_ops._attention import memory_efficient_attention
from attn_ops._choose import ALL_BW_OPS, ALL_FW_OPS
from attn_ops._inputs import Inputs
from attn_ops.fmha import attn_bias, cpu, cutlass, flash
from attn_ops.fmha.attn_bias import (
    VARLEN_BIASES,
    AttentionBias,
    AttentionMask,
    BlockDiagonalMask,
    LowerTriangularFromBottomRightLocalAttentionMask,
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
)
from attn_ops.fmha.functions import (
    memory_efficient_attention_backward,
    memory_efficient_attention_forward,
    memory_efficient_attention_forward_requires_grad,
    memory_efficient_attention_partial,
)
from attn_ops.fmha.merge import merge_attentions
from attn_ops.fmha.operators import (
    AttentionBwOpBase,
    AttentionFwOpBase,
    AttentionOp,
    AttentionOpBase,
)
from attn_ops.fmha.step import attention_step_, multihead_attention_step_

MemoryEfficientAttentionCutlassOp = (cutlass.FwOp, cutlass.BwOp)
MemoryEfficientAttentionFlashAttentionOp = (flash.FwOp, flash.BwOp)
MemoryEfficientAttentionCutlassFwdFlashBwOp = (cutlass.FwOp, flash.BwOp)

__all__ = [
    "ALL_BW_OPS",
    "ALL_FW_OPS",
    "VARLEN_BIASES",
    "AttentionBias",
    "AttentionBwOpBase",
    "AttentionFwOpBase",
    "AttentionMask",
    "AttentionOp",
    "AttentionOpBase",
    "BlockDiagonalMask",
    "Inputs",
    "LowerTriangularFromBottomRightLocalAttentionMask",
    "LowerTriangularFromBottomRightMask",
    "LowerTriangularMask",
    "MemoryEfficientAttentionCutlassFwdFlashBwOp",
    "MemoryEfficientAttentionCutlassOp",
    "MemoryEfficientAttentionFlashAttentionOp",
    "attention_step_",
    "attn_bias",
    "cpu",
    "cutlass",
    "flash",
    "memory_efficient_attention",
    "memory_efficient_attention_backward",
    "memory_efficient_attention_forward",
    "memory_efficient_attention_forward_requires_grad",
    "memory_efficient_attention_partial",
    "merge_attentions",
    "multihead_attention_step_",
]

if not TYPE_CHECKING:  # type checkers know that there is no such attribute

    def __getattr__(name: str) -> object:
        raise _absent.no_attribute(__name__, name)
