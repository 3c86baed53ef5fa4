"""Compares results with eager ones in float64, by the rule of the numerics tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Error:
    """How far a result is from the truth, and how far it may be."""

    largest: float
    allowed: float

    @property
    def is_small(self) -> bool:
        """Return whether the result may be timed; NaN may not."""
        return self.largest <= self.allowed


def compare(
    results: Sequence[Tensor], exact: Sequence[Tensor], eager: Sequence[Tensor], factor: int
) -> Error:
    """Allow each result `factor` times the error of the eager one, plus 1e-5.

    Returns: the error of the result that comes closest to, or furthest past, what it may have.
    """
    errors = [
        Error(_distance(ours, truth), factor * _distance(naive, truth) + 1e-5)
        for ours, truth, naive in zip(results, exact, eager, strict=True)
    ]
    return min(errors, key=lambda error: error.allowed - error.largest)


def attend_eagerly(query: Tensor, key: Tensor, value: Tensor, added: Tensor | None) -> Tensor:
    """Return attention [B, Hq, Mq, K] with `added` on the scores; 0 where a query sees nothing.

    Shapes: query [B, Hq, Mq, K]; key and value [B, Hkv, Mkv, K]; added [B, Hq, Mq, Mkv] or what
    broadcasts to it, -inf for keys that are not seen.
    """
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if added is None:
        return scores.softmax(-1) @ value
    scores = scores + added.to(scores.dtype)
    sees_nothing = (scores == -torch.inf).all(-1, keepdim=True)
    return scores.softmax(-1).masked_fill(sees_nothing, 0.0) @ value


def _distance(tensor: Tensor, truth: Tensor) -> float:
    return (tensor.double() - truth).abs().max().item()
