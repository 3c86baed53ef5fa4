"""The operators that xFormers has from FlashAttention 2: CUDA kernels, not in this build.

They can be named, and say why they do not run. Their limits are those that xFormers documents.
"""

import torch

from attn_ops.fmha.operators import AttentionBwOpBase, AttentionFwOpBase

__all__ = ["BwOp", "FwOp"]


class FwOp(AttentionFwOpBase):
    """The forward operator of FlashAttention 2; not built."""

    NAME = "fa2F"
    WHY_UNAVAILABLE = "here by name alone, for code that asks for it; fmha.cutlass serves CUDA"
    SUPPORTED_DEVICES = ("cuda",)
    SUPPORTED_DTYPES = (torch.float16, torch.bfloat16)
    SUPPORTED_MAX_K = 256


class BwOp(AttentionBwOpBase):
    """The backward operator of FlashAttention 2; not built."""

    NAME = "fa2B"
    WHY_UNAVAILABLE = FwOp.WHY_UNAVAILABLE
    SUPPORTED_DEVICES = FwOp.SUPPORTED_DEVICES
    SUPPORTED_DTYPES = FwOp.SUPPORTED_DTYPES
    SUPPORTED_MAX_K = FwOp.SUPPORTED_MAX_K
