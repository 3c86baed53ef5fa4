"""Chooses the operator for a call, and says why one does not fit, in xFormers' words."""

from dataclasses import dataclass

import torch
from torch import Tensor

from attn_ops._inputs import Inputs
from attn_ops._lower import can_lower


@dataclass(frozen=True)
class Operator:
    """What one implementation of attention can do, forward and backward."""

    name: str
    device_types: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]

    def not_supported_reasons(self, inputs: Inputs) -> list[str]:
        """Return why this operator cannot serve `inputs`; empty if it can."""
        query = inputs.query
        reasons = []
        if query.device.type not in self.device_types:
            reasons.append(f"device={query.device.type} (supported: {_braced(self.device_types)})")
        if query.dtype not in self.dtypes:
            reasons.append(f"dtype={query.dtype} (supported: {_braced(self.dtypes)})")
        if not can_lower(inputs.attn_bias):
            reasons.append(f"attn_bias type is {type(inputs.attn_bias)}")
        return reasons


OPERATORS = (
    Operator(
        name="cpuF",
        device_types=("cpu",),
        dtypes=(torch.float32, torch.bfloat16, torch.float16, torch.float64),
    ),
)
"""Every operator of this build, best first."""


def choose(inputs: Inputs, op: object = None) -> Operator:
    """Return the first operator that fits checked inputs.

    Raises: ValueError if `op` asks for one by name, which no operator class exists for yet;
    NotImplementedError, with each operator's reasons, if none fits.
    """
    if op is not None:
        raise ValueError(
            "memory_efficient_attention: expected op=None, which chooses the best operator, got "
            f"{op!r}"
        )
    for operator in OPERATORS:
        if not operator.not_supported_reasons(inputs):
            return operator
    raise NotImplementedError(_no_operator(inputs))


def _no_operator(inputs: Inputs) -> str:
    lines = ["No operator found for `memory_efficient_attention_forward` with inputs:"]
    for name, tensor in (
        ("query", inputs.query),
        ("key", inputs.key),
        ("value", inputs.value),
    ):
        lines.append(f"     {name:<11} : {_describe(tensor)}")
    lines.append(f"     {'attn_bias':<11} : {type(inputs.attn_bias)}")
    lines.append(f"     {'p':<11} : {inputs.p}")
    for operator in OPERATORS:
        lines.append(f"`{operator.name}` is not supported because:")
        lines.extend(f"    {reason}" for reason in operator.not_supported_reasons(inputs))
    return "\n".join(lines)


def _describe(tensor: Tensor) -> str:
    return f"shape={tuple(tensor.shape)} ({tensor.dtype})"


def _braced(items: tuple[object, ...]) -> str:
    """Return what a set of `items` would print, in their own order."""
    return "{" + ", ".join(map(repr, items)) + "}"
