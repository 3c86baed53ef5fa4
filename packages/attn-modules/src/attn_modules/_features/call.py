"""One call of attention by features, read chunk by chunk in the dtype that sums are kept in.

Shapes: G = B * H matrices of C rows: x [G, C, K], phi [G, C, m], values [G, C, E], where E is
Kv + 1, as the last column is 1: what the sums of values are divided by is one more of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from attn_modules._features.arithmetic import (
    Kind,
    count_features,
    features,
    log_weights,
    rows_gradient,
)
from attn_ops.operands import working_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator


class Queries(NamedTuple):
    """One chunk of queries."""

    x: Tensor
    """[G, C, K]"""
    phi: Tensor
    """[G, C, m]"""


class Keys(NamedTuple):
    """One chunk of keys and values."""

    x: Tensor
    """[G, C, K], 0 where a key is padding."""
    phi: Tensor
    """[G, C, m], 0 where a key is padding."""
    values: Tensor
    """[G, C, E], 0 but for the last column where a key is padding."""
    log_weight: Tensor | None
    """[G, C], -inf where a key is padding; None if all weights are 1."""
    padding: Tensor | None
    """bool [G, C, 1], or None."""


@dataclass(frozen=True)
class FeatureCall:
    """The inputs of one call; see `operators.feature_attention`."""

    q: Tensor
    """[B, Mq, H, K]"""
    k: Tensor
    """[B, Mkv, H, K]"""
    v: Tensor
    """[B, Mkv, H, Kv]"""
    keep: Tensor | None
    """bool [B or 1, Mkv, H or 1, 1]: False is padding."""
    projection: Tensor | None
    """[K, m or m / 2], or None for a kind that needs none."""
    kind: Kind
    scale: float
    """What queries and keys are multiplied by."""

    @property
    def dtype(self) -> torch.dtype:
        """What sums are kept in."""
        return working_dtype(self.q.dtype)

    def empty_sums(self) -> Tensor:
        """Return zeros [G, E, m]."""
        batch, _, heads, width = self.v.shape
        dim_features = count_features(self.kind, self.q, self.projection)
        return self.v.new_zeros(batch * heads, width + 1, dim_features, dtype=self.dtype)

    def queries(self, rows: slice) -> Queries:
        """Return a chunk of queries and their features."""
        x = self._read(self.q, rows) * self.scale
        return Queries(x, features(self.kind, x, self._projection))

    def keys(self, rows: slice) -> Keys:
        """Return a chunk of keys and values, with the features and weights of the keys."""
        x, v = self._read(self.k, rows) * self.scale, self._read(self.v, rows)
        padding = None
        if self.keep is not None:
            shape = (self.k.shape[0], -1, self.k.shape[2], 1)
            padding = ~self.keep[:, rows].expand(shape).transpose(1, 2).flatten(0, 1)
            x, v = x.masked_fill(padding, 0.0), v.masked_fill(padding, 0.0)
        phi, log_weight = features(self.kind, x, self._projection), log_weights(self.kind, x)
        if padding is not None:
            phi.masked_fill_(padding, 0.0)
            if log_weight is not None:
                log_weight.masked_fill_(padding.squeeze(-1), -torch.inf)
        values = torch.cat((v, v.new_ones(1).expand(*v.shape[:2], 1)), -1)
        return Keys(x, phi, values, log_weight, padding)

    def grad_quotient(self, rows: slice, out: Tensor, total: Tensor, grad_out: Tensor) -> Tensor:
        """Return the gradient [G, C, E] to the sums whose quotient `out` [B, Mq, H, Kv] is.

        total [B, Mq, H, 1]: the divisor; where it is 0, so is the gradient.
        """
        divisor = self._read(total, rows)
        grad = self._read(grad_out, rows)
        last = -(grad * self._read(out, rows)).sum(-1, keepdim=True)
        joined = torch.cat((grad, last), -1) / divisor
        return joined.masked_fill_(divisor == 0, 0.0)

    def grad_queries(self, rows: slice, chunk: Queries, grad_phi: Tensor, grad_q: Tensor) -> None:
        """Write the gradient to a chunk of queries; overwrites `grad_phi`."""
        grad = rows_gradient(self.kind, self._projection, chunk.phi, grad_phi)
        self._write(grad_q, rows, grad.mul_(self.scale))

    def grad_keys(
        self, rows: slice, chunk: Keys, grad_phi: Tensor, grad_values: Tensor, grad_k: Tensor
    ) -> None:
        """Write the gradient to a chunk of keys; overwrites `grad_phi`."""
        if chunk.padding is not None:
            grad_phi.masked_fill_(chunk.padding, 0.0)
        grad = rows_gradient(self.kind, self._projection, chunk.phi, grad_phi)
        if chunk.log_weight is not None:
            # A row's weight, exp(-|x|^2 / 2), multiplies its values wherever they appear.
            grad -= chunk.x * (grad_values * chunk.values).sum(-1, keepdim=True)
        self._write(grad_k, rows, grad.mul_(self.scale))

    def grad_values(self, rows: slice, grad: Tensor, grad_v: Tensor) -> None:
        """Write the gradient [G, C, E] to a chunk of values."""
        self._write(grad_v, rows, grad[..., :-1])

    def write_quotient(self, rows: slice, sums: Tensor, out: Tensor, total: Tensor) -> None:
        """Write the results of a chunk and their divisors."""
        self._write(out, rows, quotient(sums))
        self._write(total, rows, sums[..., -1:])

    @property
    def _projection(self) -> Tensor | None:
        return None if self.projection is None else self.projection.to(self.dtype)

    def _read(self, x: Tensor, rows: slice) -> Tensor:
        return x[:, rows].transpose(1, 2).to(self.dtype).flatten(0, 1)

    def _write(self, target: Tensor, rows: slice, x: Tensor) -> None:
        batch, _, heads, _ = target.shape
        target[:, rows].transpose(1, 2).copy_(x.unflatten(0, (batch, heads)))


def quotient(sums: Tensor) -> Tensor:
    """Return the results [..., Kv] of sums [..., E]; where the divisor is 0, so is the result."""
    divisor = sums[..., -1:]
    return (sums[..., :-1] / divisor).masked_fill_(divisor == 0, 0.0)


def chunks(rows: int, size: int) -> Iterator[slice]:
    """Yield the slices of `size` rows, the last of what is left."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
