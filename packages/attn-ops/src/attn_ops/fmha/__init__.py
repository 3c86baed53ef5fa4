"""Attention and its masks, under the names of `xformers.ops.fmha`."""

from attn_ops._attention import memory_efficient_attention
from attn_ops.fmha import attn_bias
from attn_ops.fmha.attn_bias import (
    AttentionBias,
    LowerTriangularFromBottomRightLocalAttentionMask,
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
)

__all__ = [
    "AttentionBias",
    "LowerTriangularFromBottomRightLocalAttentionMask",
    "LowerTriangularFromBottomRightMask",
    "LowerTriangularMask",
    "attn_bias",
    "memory_efficient_attention",
]
