"""What this library's own operators take, on whatever device their kernels run."""

import torch
from torch import Tensor

from attn_ops import _lower
from attn_ops.fmha.operators import AttentionOpBase


class LibraryOp(AttentionOpBase):
    """What both directions take on every device: all masks and options there are."""

    SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
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
    def _reasons_against(cls, attn_bias: object) -> list[str]:
        if _lower.can_lower(attn_bias):
            return []
        reason = (
            f"attn_bias type is {_lower.refused_class(attn_bias)} (supported: None, tensors, and "
            "the classes of attn_ops.fmha.attn_bias themselves, for a subclass may mean something "
            "else; pass one of these, or the tensor that materialize((1, 1, Mq, Mkv)) makes)"
        )
        return [reason]
