"""The operators of this library on CUDA: every mask, in three dtypes, forward and backward.

They bear the name of xFormers' most general CUDA operators, for they serve as many calls. A build
without CUDA kernels has none; they can then be named, and say why they do not run. So far they ran
on an emulated GPU alone.
"""

from attn_ops import _native, _torch_ops
from attn_ops.fmha.library_op import LibraryOp
from attn_ops.fmha.operators import AttentionBwOpBase, AttentionFwOpBase

__all__ = ["BwOp", "FwOp"]

_HAS_KERNELS = _native.has_cuda()


class FwOp(LibraryOp, AttentionFwOpBase):
    """The forward operator on CUDA."""

    NAME = "cutlassF"
    WHY_UNAVAILABLE = "built without CUDA, see build.cuda"
    OPERATOR = _torch_ops.attention_forward if _HAS_KERNELS else None
    SUPPORTED_DEVICES = ("cuda",)
    SUPPORTED_MAX_K = 256


class BwOp(LibraryOp, AttentionBwOpBase):
    """The backward operator on CUDA: deterministic, with every mask's own gradients."""

    NAME = "cutlassB"
    WHY_UNAVAILABLE = FwOp.WHY_UNAVAILABLE
    OPERATOR = _torch_ops.attention_backward if _HAS_KERNELS else None
    SUPPORTED_DEVICES = FwOp.SUPPORTED_DEVICES
    SUPPORTED_MAX_K = FwOp.SUPPORTED_MAX_K
