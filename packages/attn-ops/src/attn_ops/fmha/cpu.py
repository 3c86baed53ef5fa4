"""The operators of this library on the CPU: every mask, dtype and width, forward and backward."""

import torch

from attn_ops import _torch_ops
from attn_ops.fmha.library_op import LibraryOp
from attn_ops.fmha.operators import AttentionBwOpBase, AttentionFwOpBase

__all__ = ["BwOp", "FwOp"]


class FwOp(LibraryOp, AttentionFwOpBase):
    """The forward operator on the CPU."""

    NAME = "cpuF"
    OPERATOR = _torch_ops.attention_forward
    SUPPORTED_DEVICES = ("cpu",)
    SUPPORTED_DTYPES = (*LibraryOp.SUPPORTED_DTYPES, torch.float64)


class BwOp(LibraryOp, AttentionBwOpBase):
    """The backward operator on the CPU: deterministic, with every mask's own gradients."""

    NAME = "cpuB"
    OPERATOR = _torch_ops.attention_backward
    SUPPORTED_DEVICES = FwOp.SUPPORTED_DEVICES
    SUPPORTED_DTYPES = FwOp.SUPPORTED_DTYPES
