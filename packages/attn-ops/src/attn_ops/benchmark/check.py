"""Checks a result against eager attention in float64, by the rule of the numerics tests."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attn_ops.benchmark.cases import Case
from attn_ops.benchmark.contenders import Operands

_ROWS = 8  # of each head, in a forward


@dataclass(frozen=True)
class Error:
    """How far a result is from the truth, and how far it may be."""

    largest: float
    allowed: float

    @property
    def is_small(self) -> bool:
        """Return whether the result may be timed; NaN may not."""
        return self.largest <= self.allowed


def check(case: Case, operands: Operands, results: tuple[Tensor, ...]) -> Error:
    """Compare `results` with float64, allowing 2 times (gradients: 3 times) eager's error + 1e-5.

    A backward is checked in all of the last head, any other in a few rows of every head.
    """
    if case.kind != "backward":
        rows = torch.linspace(0, case.Mq - 1, min(case.Mq, _ROWS)).long()
        bias = None if operands.bias is None else operands.bias[:, :, rows]
        subject = replace(operands, query=operands.query[:, :, rows], bias=bias)
        exact = (_attend(subject.map(Tensor.double), rows, case.causal),)
        eager = (_attend(subject, rows, case.causal),)
        return _compare([results[0][:, :, rows]], exact, eager, factor=2)
    subject = operands.map(lambda tensor: tensor[-1:, -1:])
    exact = _gradients(subject.map(Tensor.double), case.causal)
    eager = _gradients(subject, case.causal)
    return _compare([gradient[-1:, -1:] for gradient in results], exact, eager, factor=3)


def _compare(
    results: list[Tensor], exact: tuple[Tensor, ...], eager: tuple[Tensor, ...], factor: int
) -> Error:
    """Return the error of the result that comes closest to, or furthest past, what it may have."""
    errors = [
        Error(_distance(ours, truth), factor * _distance(naive, truth) + 1e-5)
        for ours, truth, naive in zip(results, exact, eager, strict=True)
    ]
    return min(errors, key=lambda error: error.allowed - error.largest)


def _distance(tensor: Tensor, truth: Tensor) -> float:
    return (tensor.double() - truth).abs().max().item()


def _attend(operands: Operands, rows: Tensor, causal: bool) -> Tensor:
    """Return [B, Hq, len(rows), K]; operands.query and bias hold only these rows."""
    query = operands.query
    group = query.shape[1] // operands.key.shape[1]
    key = operands.key.repeat_interleave(group, 1)
    value = operands.value.repeat_interleave(group, 1)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if operands.bias is not None:
        scores = scores + operands.bias
    if causal:
        hidden = torch.arange(key.shape[2]) > rows.unsqueeze(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(-1) @ value


def _gradients(operands: Operands, causal: bool) -> tuple[Tensor, ...]:
    operands = operands.map(Tensor.detach)
    leaves = [operands.query, operands.key, operands.value]
    for leaf in leaves:
        leaf.requires_grad_()
    out = _attend(operands, torch.arange(operands.query.shape[2]), causal)
    return torch.autograd.grad(out, leaves, operands.grad_out)
