"""What an attention operator is: a class, by xFormers' names, that says which calls it serves.

Operators are never instantiated: `op=(fmha.cpu.FwOp, fmha.cpu.BwOp)` passes the classes.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from attn_ops._inputs import Inputs


class AttentionOpBase:
    """Describe one implementation of attention; the base of forward and backward operators."""

    NAME: ClassVar[str] = ""
    OPERATOR_CATEGORY: ClassVar[str] = "memory_efficient_attention"
    OPERATOR: ClassVar[Callable[..., Any] | None] = None
    """The torch operator that runs it; None: this build has none."""
    WHY_UNAVAILABLE: ClassVar[str] = "this build has none"
    SUPPORTED_DEVICES: ClassVar[tuple[str, ...]] = ()
    SUPPORTED_DTYPES: ClassVar[tuple[torch.dtype, ...]] = ()
    SUPPORTED_MAX_K: ClassVar[float] = float("inf")
    """The largest width of query, key and value."""
    SUPPORTED_ATTN_BIAS_TYPES: ClassVar[tuple[type, ...]] = ()
    SUPPORTS_ATTN_BIAS_GRAD: ClassVar[bool] = False
    SUPPORTS_BMGHK: ClassVar[bool] = False
    """Takes 5-D tensors [B, M, G, H, K]."""
    SUPPORTS_CUSTOM_SCALE: ClassVar[bool] = False
    SUPPORTS_DIFFERENT_VALUE_EMBED: ClassVar[bool] = False
    SUPPORTS_DROPOUT: ClassVar[bool] = False
    SUPPORTS_OUTPUT_DTYPE: ClassVar[bool] = False
    SUPPORTS_PARTIAL: ClassVar[bool] = False
    IS_DETERMINISTIC: ClassVar[bool] = True
    VARLEN_LSE_PACKED: ClassVar[bool] = True
    """The LSE of sequences is [1, H, total queries], without padding."""

    @classmethod
    def is_available(cls) -> bool:
        """Return whether this build has the operator."""
        return cls.OPERATOR is not None

    @classmethod
    def info(cls) -> str:
        """Return "available" or "unavailable"."""
        return "available" if cls.is_available() else "unavailable"

    @classmethod
    def supports(cls, inp: Inputs) -> bool:
        """Return whether the operator serves this call."""
        return not cls.not_supported_reasons(inp)

    @classmethod
    def not_supported_reasons(cls, inp: Inputs) -> list[str]:
        """Return why the operator cannot serve this call, in xFormers' words; empty if it can.

        What was not built is not asked about masks and options.
        """
        device, dtype = inp.query.device.type, inp.query.dtype
        reasons = []
        if device not in cls.SUPPORTED_DEVICES:
            reasons.append(f"device={device} (supported: {_braced(cls.SUPPORTED_DEVICES)})")
        if dtype not in cls.SUPPORTED_DTYPES:
            reasons.append(f"dtype={dtype} (supported: {_braced(cls.SUPPORTED_DTYPES)})")
        if max(inp.query.shape[-1], inp.value.shape[-1]) > cls.SUPPORTED_MAX_K:
            reasons.append(f"max(query.shape[-1], value.shape[-1]) > {cls.SUPPORTED_MAX_K}")
        if not cls.is_available():
            reasons.append("operator wasn't built - see `python -m attn_ops.info` for more info")
            return reasons
        return reasons + cls._reasons_against(inp.attn_bias) + cls._missing_options(inp)

    @classmethod
    def _reasons_against(cls, attn_bias: object) -> list[str]:
        """Return why not, unless the type is known: exactly, for a subclass may mean anything."""
        kind = Tensor if isinstance(attn_bias, Tensor) else type(attn_bias)
        is_known = kind in cls.SUPPORTED_ATTN_BIAS_TYPES
        return [] if is_known else [f"attn_bias type is {type(attn_bias)}"]

    @classmethod
    def _missing_options(cls, inp: Inputs) -> list[str]:
        has_bias_grad = isinstance(inp.attn_bias, Tensor) and inp.attn_bias.requires_grad
        wanted = (
            (inp.p != 0.0, cls.SUPPORTS_DROPOUT, "dropout > 0.0"),
            (inp.scale is not None, cls.SUPPORTS_CUSTOM_SCALE, "has custom scale"),
            (
                inp.query.shape[-1] != inp.value.shape[-1],
                cls.SUPPORTS_DIFFERENT_VALUE_EMBED,
                "query.shape[-1] != value.shape[-1]",
            ),
            (
                inp.output_dtype not in (None, inp.query.dtype),
                cls.SUPPORTS_OUTPUT_DTYPE,
                "Custom output dtype not supported",
            ),
            (inp.is_partial, cls.SUPPORTS_PARTIAL, "Partial attention not supported"),
            (
                inp.query.dim() == 5,
                cls.SUPPORTS_BMGHK,
                "operator does not support BMGHK format",
            ),
            (
                has_bias_grad and issubclass(cls, AttentionBwOpBase),
                cls.SUPPORTS_ATTN_BIAS_GRAD,
                "Computing the bias gradient is not supported (attn_bias.requires_grad = True)",
            ),
        )
        return [reason for is_wanted, is_there, reason in wanted if is_wanted and not is_there]


class AttentionFwOpBase(AttentionOpBase):
    """Describe an operator that computes the output, and the LSE on demand."""


class AttentionBwOpBase(AttentionOpBase):
    """Describe an operator that computes gradients from the output and the LSE of a forward."""


AttentionOp = tuple[type[AttentionFwOpBase] | None, type[AttentionBwOpBase] | None]
"""A forward and a backward operator; None chooses the best."""


def _braced(items: tuple[object, ...]) -> str:
    """Return what a set of `items` would print, in their own order."""
    return "{" + ", ".join(map(repr, items)) + "}"
