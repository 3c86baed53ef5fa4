"""Chooses the operators of a call, and says why others do not fit, in xFormers' words."""

from collections.abc import Sequence
from typing import Final, TypeVar

from torch import Tensor

from attn_ops._inputs import Inputs
from attn_ops.fmha import cpu, cutlass, flash
from attn_ops.fmha.operators import (
    AttentionBwOpBase,
    AttentionFwOpBase,
    AttentionOp,
    AttentionOpBase,
)

ALL_FW_OPS: Final[tuple[type[AttentionFwOpBase], ...]] = (cpu.FwOp, cutlass.FwOp, flash.FwOp)
"""Every forward operator that can be named, best first."""

ALL_BW_OPS: Final[tuple[type[AttentionBwOpBase], ...]] = (cpu.BwOp, cutlass.BwOp, flash.BwOp)
"""Every backward operator that can be named, best first."""

_Operator = TypeVar("_Operator", bound=type[AttentionOpBase])


def choose_forward(
    inputs: Inputs, op: type[AttentionFwOpBase] | None = None
) -> type[AttentionFwOpBase]:
    """Return `op`, or the first forward operator that fits checked inputs.

    Raises: TypeError if `op` is no forward operator; ValueError, with its reasons, if it does not
    fit; NotImplementedError, with each operator's reasons, if none fits.
    """
    _check_kind(op, AttentionFwOpBase)
    if op is not None:
        return _ensure_fits("memory_efficient_attention", op, inputs)
    return _first_that_fits("memory_efficient_attention_forward", ALL_FW_OPS, inputs)


def choose_backward(
    inputs: Inputs, op: type[AttentionBwOpBase] | None = None
) -> type[AttentionBwOpBase]:
    """Return `op`, or the first backward operator that fits; raises as `choose_forward`."""
    _check_kind(op, AttentionBwOpBase)
    if op is not None:
        return _ensure_fits("memory_efficient_attention_backward", op, inputs)
    return _first_that_fits("memory_efficient_attention_backward", ALL_BW_OPS, inputs)


def split_pair(op: AttentionOp | None) -> AttentionOp:
    """Return the forward and the backward operator of an `op` argument.

    Raises: TypeError if it is neither None nor a pair of them.
    """
    if op is None:
        return None, None
    if not isinstance(op, (tuple, list)) or len(op) != 2:
        raise TypeError(
            "memory_efficient_attention: expected op=None or a pair (forward operator, backward "
            f"operator), either of which may be None, got {op!r}; pass for example "
            "(fmha.cpu.FwOp, fmha.cpu.BwOp)"
        )
    forward, backward = op
    _check_kind(forward, AttentionFwOpBase)
    _check_kind(backward, AttentionBwOpBase)
    return forward, backward


def describe_refusals(operators: Sequence[type[AttentionOpBase]], inputs: Inputs) -> str:
    """Return one paragraph for each operator that does not fit: its name, then its reasons."""
    lines = []
    for operator in operators:
        reasons = operator.not_supported_reasons(inputs)
        if reasons:
            lines.append(f"`{operator.NAME}` is not supported because:")
            lines.extend(f"    {reason}" for reason in reasons)
    return "\n".join(lines)


def describe_inputs(inputs: Inputs) -> str:
    """Return a line for each argument that decides the choice."""
    return "\n".join(
        f"     {name:<11} : {text}"
        for name, text in (
            ("query", _describe(inputs.query)),
            ("key", _describe(inputs.key)),
            ("value", _describe(inputs.value)),
            ("attn_bias", str(type(inputs.attn_bias))),
            ("p", str(inputs.p)),
        )
    )


def _describe(tensor: Tensor) -> str:
    return f"shape={tuple(tensor.shape)} ({tensor.dtype})"


def _check_kind(op: object, base: type[AttentionOpBase]) -> None:
    if op is None or (isinstance(op, type) and issubclass(op, base)):
        return
    direction = "forward" if base is AttentionFwOpBase else "backward"
    raise TypeError(
        f"memory_efficient_attention: expected a {direction} operator class, such as fmha.cpu."
        f"{'FwOp' if base is AttentionFwOpBase else 'BwOp'}, or None as op, got {op!r}"
    )


def _ensure_fits(task: str, op: _Operator, inputs: Inputs) -> _Operator:
    if op.not_supported_reasons(inputs):
        raise ValueError(
            f"Operator `{task}` does not support inputs:\n{describe_inputs(inputs)}\n"
            f"{describe_refusals([op], inputs)}"
        )
    return op


def _first_that_fits(task: str, operators: Sequence[_Operator], inputs: Inputs) -> _Operator:
    for operator in operators:
        if not operator.not_supported_reasons(inputs):
            return operator
    raise NotImplementedError(
        f"No operator found for `{task}` with inputs:\n{describe_inputs(inputs)}\n"
        f"{describe_refusals(operators, inputs)}"
    )
