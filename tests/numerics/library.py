"""Runs the library under test on a `Problem`, through its out-variant functions."""

import math
from typing import Any

import torch
from torch import Tensor

from attn_ops import _native
from attn_ops.mask import ANCHOR_BOTTOM_RIGHT, ANCHOR_TOP_LEFT, UNBOUNDED
from reference.problem import Problem, Results


def run(problem: Problem, *, num_threads: int = 0) -> Results:
    """Return forward and backward of `problem`. Outputs are NaN until the library writes them."""
    inputs = (problem.query, problem.key, problem.value)
    call = options(problem, num_threads)
    out, lse = unwritten(problem.grad_out), unwritten(problem.grad_lse)
    _native.attention_forward(*inputs, out, lse, **call)
    grad_query, grad_key, grad_value = map(unwritten, inputs)
    bias = problem.mask.additive_bias
    grad_bias = None if bias is None else unwritten(bias)
    _native.attention_backward(
        *inputs,
        out,
        lse,
        problem.grad_out,
        grad_lse=problem.grad_lse,
        grad_query=grad_query,
        grad_key=grad_key,
        grad_value=grad_value,
        grad_bias=grad_bias,
        **call,
    )
    return Results(out, lse, grad_query, grad_key, grad_value, grad_bias)


def forward(problem: Problem, *, num_threads: int = 0) -> tuple[Tensor, Tensor]:
    """Return out and lse alone."""
    out, lse = unwritten(problem.grad_out), unwritten(problem.grad_lse)
    inputs = (problem.query, problem.key, problem.value)
    _native.attention_forward(*inputs, out, lse, **options(problem, num_threads))
    return out, lse


def options(problem: Problem, num_threads: int = 0) -> dict[str, Any]:
    """Return the keyword arguments that forward and backward share."""
    mask = problem.mask
    return {
        "bias": mask.bias,
        "band_left": UNBOUNDED if mask.left is None else mask.left,
        "band_right": UNBOUNDED if mask.right is None else mask.right,
        "band_anchor": ANCHOR_BOTTOM_RIGHT if mask.anchor == "bottom_right" else ANCHOR_TOP_LEFT,
        "dropout_p": mask.dropout_p,
        "dropout_seed": mask.dropout_seed,
        "dropout_offset": mask.dropout_offset,
        "scale": problem.scale,
        "num_threads": num_threads,
    }


def unwritten(like: Tensor) -> Tensor:
    """Return a contiguous tensor of NaN in the shape and dtype of `like`."""
    return torch.full(like.shape, math.nan, dtype=like.dtype)
