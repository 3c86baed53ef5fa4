"""The operators that xFormers has on CUTLASS: CUDA kernels, which this build does not contain.

They can be named, and say why they do not run. Their limits are those that xFormers documents.
"""

import torch

from attn_ops.fmha.operators import AttentionBwOpBase, AttentionFwOpBase

__all__ = ["BwOp", "FwOp"]


class FwOp(AttentionFwOpBase):
    """The forward operator on CUTLASS; not built."""

    NAME = "cutlassF"
    SUPPORTED_DEVICES = ("cuda",)
    SUPPORTED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
    SUPPORTED_MAX_K = 65536


class BwOp(AttentionBwOpBase):
    """The backward operator on CUTLASS; not built."""

    NAME = "cutlassB"
    SUPPORTED_DEVICES = FwOp.SUPPORTED_DEVICES
    SUPPORTED_DTYPES = FwOp.SUPPORTED_DTYPES
    SUPPORTED_MAX_K = FwOp.SUPPORTED_MAX_K
