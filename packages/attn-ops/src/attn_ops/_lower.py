"""Lowers `attn_bias` objects to the parts of a `MaskSpec`: no kernel knows a class name."""

from typing import Final

from torch import Tensor

from attn_ops.fmha import attn_bias as masks
from attn_ops.fmha.attn_bias import AttentionBias, BiasedMask
from attn_ops.mask import MaskSpec

_EVERY_KEY: Final = MaskSpec()

# Exact types: a subclass from elsewhere may mean something else, and is refused by name.
MASK_CLASSES: Final = frozenset(
    found
    for found in vars(masks).values()
    if isinstance(found, type) and issubclass(found, AttentionBias) and found is not AttentionBias
)
"""Every class that kernels can evaluate."""


def can_lower(attn_bias: object) -> bool:
    """Return whether `attn_bias` is of a kind that kernels can evaluate."""
    if attn_bias is None or isinstance(attn_bias, Tensor):
        return True
    if isinstance(attn_bias, BiasedMask):
        adds = isinstance(attn_bias.bias, Tensor) or type(attn_bias.bias) in MASK_CLASSES
        return type(attn_bias) is BiasedMask and adds and can_lower(attn_bias.mask)
    return type(attn_bias) in MASK_CLASSES


def refused_class(attn_bias: object) -> type:
    """Return the class for which `can_lower` is false: that of `attn_bias`, or of what it holds."""
    while type(attn_bias) is BiasedMask:
        attn_bias = attn_bias.bias if can_lower(attn_bias.mask) else attn_bias.mask
    return type(attn_bias)


def lower(attn_bias: Tensor | AttentionBias | None) -> MaskSpec:
    """Return the parts that `attn_bias`, for which `can_lower`, stands for; all but dropout.

    Its tensors are the mask's own, so that lengths changed in place are seen. `bias` is the tensor
    as the user gave it, and so None for a bare tensor: its layout is that of the inputs.
    """
    if attn_bias is None or isinstance(attn_bias, Tensor):
        return _EVERY_KEY
    return attn_bias.mask_spec()
