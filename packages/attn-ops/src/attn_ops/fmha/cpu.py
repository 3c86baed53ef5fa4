"""The operators of this library on the CPU: every mask, dtype and width, forward and backward."""

import torch
from torch import Tensor

from attn_ops import _lower, _torch_ops
from attn_ops.fmha.operators import AttentionBwOpBase, AttentionFwOpBase, AttentionOpBase

__all__ = ["BwOp", "FwOp"]


class _CpuOp(AttentionOpBase):
    """What both directions take: everything that the rest of the library can say."""

    SUPPORTED_DEVICES = ("cpu",)
    SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    SUPPORTED_ATTN_BIAS_TYPES = (
        type(None),
        Tensor,
        *sorted(_lower.MASK_CLASSES, key=lambda mask: mask.__name__),
    )
    SUPPORTS_ATTN_BIAS_GRAD = True
    SUPPORTS_BMGHK = True
    SUPPORTS_CUSTOM_SCALE = True
    SUPPORTS_DIFFERENT_VALUE_EMBED = True
    SUPPORTS_DROPOUT = True
    SUPPORTS_OUTPUT_DTYPE = True
    SUPPORTS_PARTIAL = True

    @classmethod
    def _takes(cls, attn_bias: object) -> bool:
        return _lower.can_lower(attn_bias)  # a mask may hold another, of an unknown class


class FwOp(_CpuOp, AttentionFwOpBase):
    """The forward operator on the CPU."""

    NAME = "cpuF"
    OPERATOR = _torch_ops.attention_forward


class BwOp(_CpuOp, AttentionBwOpBase):
    """The backward operator on the CPU: deterministic, with every mask's own gradients."""

    NAME = "cpuB"
    OPERATOR = _torch_ops.attention_backward
