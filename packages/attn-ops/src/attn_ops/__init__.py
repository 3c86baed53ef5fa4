"""Exact attention for CPUs: `attn_ops.array` for NumPy, xFormers-compatible operators for torch.

`import attn_ops as xops` stands in for `import xformers.ops as xops` in code that uses attention.
Neither torch nor NumPy is needed to import this package. Where torch is installed its operators
are registered at once: a `torch.compile` that ran before that would lose their gradients.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

from attn_ops import _absent, _library, _native

__version__ = _native.version()

__all__ = [
    "AttentionBias",
    "AttentionBwOpBase",
    "AttentionFwOpBase",
    "AttentionMask",
    "AttentionOp",
    "AttentionOpBase",
    "LowerTriangularFromBottomRightLocalAttentionMask",
    "LowerTriangularFromBottomRightMask",
    "LowerTriangularMask",
    "MemoryEfficientAttentionCutlassFwdFlashBwOp",
    "MemoryEfficientAttentionCutlassOp",
    "MemoryEfficientAttentionFlashAttentionOp",
    "__version__",
    "array",
    "attention_step_",
    "fmha",
    "memory_efficient_attention",
    "memory_efficient_attention_backward",
    "memory_efficient_attention_forward",
    "memory_efficient_attention_forward_requires_grad",
    "memory_efficient_attention_partial",
    "merge_attentions",
    "multihead_attention_step_",
]

_NAMES_WITHOUT_TORCH = ("__version__", "array")
_TORCH_NAMES = tuple(name for name in __all__ if name not in _NAMES_WITHOUT_TORCH)


def _why_no_torch() -> str | None:
    """Return why the torch operators cannot be used, or None if they can."""
    if importlib.util.find_spec("torch") is None:
        return "needs torch 2.10 or newer; install it, or use attn_ops.array with NumPy"
    if not _library.torch_library().exists():
        return (
            "was left out because torch's headers were not there when attn-ops was built; "
            + _library.HOW_TO_ADD_TORCH
        )
    return None


_WHY_NO_TORCH = _why_no_torch()

if TYPE_CHECKING or _WHY_NO_TORCH is None:
    from attn_ops import fmha
    from attn_ops.fmha import (
        AttentionBias,
        AttentionBwOpBase,
        AttentionFwOpBase,
        AttentionMask,
        AttentionOp,
        AttentionOpBase,
        LowerTriangularFromBottomRightLocalAttentionMask,
        LowerTriangularFromBottomRightMask,
        LowerTriangularMask,
        MemoryEfficientAttentionCutlassFwdFlashBwOp,
        MemoryEfficientAttentionCutlassOp,
        MemoryEfficientAttentionFlashAttentionOp,
        attention_step_,
        memory_efficient_attention,
        memory_efficient_attention_backward,
        memory_efficient_attention_forward,
        memory_efficient_attention_forward_requires_grad,
        memory_efficient_attention_partial,
        merge_attentions,
        multihead_attention_step_,
    )
else:
    __all__[:] = _NAMES_WITHOUT_TORCH

if TYPE_CHECKING:
    from attn_ops import array


def __getattr__(name: str) -> object:
    # Imported on first use, so that torch users need no NumPy.
    if name == "array":
        return importlib.import_module("attn_ops.array")
    if name in _TORCH_NAMES:
        raise ImportError(f"attn_ops: {name} {_WHY_NO_TORCH}")
    raise _absent.no_attribute(__name__, name)
