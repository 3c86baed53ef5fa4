"""Runs the torch operators on the device under test, on problems that were made on the CPU."""

import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from attn_ops import _torch_ops
from attn_ops.mask import (
    ANCHOR_BOTTOM_RIGHT,
    ANCHOR_TOP_LEFT,
    UNBOUNDED,
    Band,
    Dropout,
    MaskSpec,
)
from reference.problem import Problem, Results

DEVICE = torch.device(os.environ.get("ATTN_TEST_DEVICE", "cuda"))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Any_ = TypeVar("Any_")


def on_device(x: Any_) -> Any_:
    """Return `x` with its tensors on the device, in the strides they have; seeds stay where."""
    if isinstance(x, Tensor):
        return _moved(x)
    if isinstance(x, Dropout) or not is_dataclass(x) or isinstance(x, type):
        return x
    return replace(x, **{field.name: on_device(getattr(x, field.name)) for field in fields(x)})


def _moved(x: Tensor) -> Any:
    whole = torch.empty(0, dtype=x.dtype).set_(x.detach().untyped_storage())
    return whole.to(DEVICE).as_strided(x.size(), x.stride(), x.storage_offset())


def spec_of(problem: Problem) -> MaskSpec:
    """Return the mask of `problem` as operators take it."""
    mask = problem.mask
    words = [mask.dropout_seed, mask.dropout_offset]
    signed = [word - 2**64 if word >= 2**63 else word for word in words]
    return MaskSpec(
        band=Band(
            UNBOUNDED if mask.left is None else mask.left,
            UNBOUNDED if mask.right is None else mask.right,
            ANCHOR_BOTTOM_RIGHT if mask.anchor == "bottom_right" else ANCHOR_TOP_LEFT,
        ),
        bias=mask.bias,
        dropout=Dropout(mask.dropout_p, torch.tensor(signed) if mask.dropout_p > 0 else None),
    )


def prepared(problem: Problem) -> Callable[[], Results]:
    """Return a call that computes forward and backward of `problem`; its results stay there."""
    there = on_device(problem)
    arguments = _torch_ops.arguments(
        there.query, there.key, there.value, on_device(spec_of(problem)), problem.scale
    )
    wants_bias = problem.mask.additive_bias is not None
    needed = (True, True, True, wants_bias, False, False, False)

    def call() -> Results:
        out, lse = _torch_ops.attention_forward(*arguments, None)
        gradients = _torch_ops.attention_backward(
            *arguments, out, lse, there.grad_out, there.grad_lse, *needed
        )
        return Results(out, lse, *gradients, *([] if wants_bias else [None]))

    return call


def run(problem: Problem) -> Results:
    """Return forward and backward of `problem`, computed on the device, on the CPU."""
    found = prepared(problem)()
    return Results(*(x if x is None else x.cpu() for x in vars(found).values()))


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return out and lse alone, on the device."""
    there = on_device(problem)
    arguments = _torch_ops.arguments(
        there.query, there.key, there.value, on_device(spec_of(problem)), problem.scale
    )
    return _torch_ops.attention_forward(*arguments, None)


def same_bits(mine: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are alike to the bit, NaN included."""
    return torch.equal(mine.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
