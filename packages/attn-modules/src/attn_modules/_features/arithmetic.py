"""The arithmetic of feature maps: features of rows, what they weigh, and the gradient to the rows.

A map of an exponential kernel is phi(x) = exp(x Omega) exp(-|x|^2 / 2). The second factor stays
apart as the logarithm of the row's weight: between queries it cancels, and between keys only its
ratio to other keys counts, so that it never underflows.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor

Kind = Literal["positive", "hyperbolic", "relu", "elu", "exp"]
"""positive: exp(x Omega) exp(-|x|^2 / 2); hyperbolic: that of Omega and of -Omega; relu:
max(x Omega, 0) + 1e-3; elu: elu(x) + 1; exp: exp(x). Without Omega, relu takes x itself."""

EXPONENT_LIMIT: Final = 28.0
"""Where exponents are cut, of |x Omega| or |x|. Sums of products of two features and a value stay
below e^56 m Mkv |v|, inside float32's e^88 while m Mkv |v| is below 10^14, and their divisors above
e^-56. Rows that reach the limit are so long that the kernel's estimate says nothing any more."""

RELU_FLOOR: Final = 1e-3
"""What keeps the sum of a relu map's weights above 0."""


def count_features(kind: Kind, rows: Tensor, projection: Tensor | None) -> int:
    """Return m, for rows [..., K] and projection [K, m or m / 2]."""
    projected = rows.shape[-1] if projection is None else projection.shape[-1]
    return 2 * projected if kind == "hyperbolic" else projected


def features(kind: Kind, x: Tensor, projection: Tensor | None) -> Tensor:
    """Return the features [..., m] of rows x [..., K], for projection [K, m or m / 2]."""
    if kind == "elu":
        # Not functional.elu(x) + 1, which cancels: in float32 it is 0 from x = -17 on.
        return torch.where(x > 0, x + 1, x.clamp(-EXPONENT_LIMIT, 0.0).exp())
    projected = x.clone() if projection is None else x @ projection
    if kind == "relu":
        return projected.relu_().add_(RELU_FLOOR)
    exponentials = projected.clamp_(-EXPONENT_LIMIT, EXPONENT_LIMIT).exp_()
    if kind == "hyperbolic":
        return torch.cat((exponentials, exponentials.reciprocal()), -1)
    return exponentials


def log_weights(kind: Kind, x: Tensor) -> Tensor | None:
    """Return the logarithms [...] of what rows x [..., K] weigh as keys, or None if they are 0."""
    return -0.5 * x.square().sum(-1) if kind in ("positive", "hyperbolic") else None


def rows_gradient(kind: Kind, projection: Tensor | None, phi: Tensor, grad_phi: Tensor) -> Tensor:
    """Return the gradient [..., K] to x through `features`, as if exponents were not cut.

    phi, grad_phi [..., m]: the features and their gradient, which is overwritten.
    """
    if kind == "elu":
        return grad_phi.mul_(phi.clamp(max=1.0))
    grad_projected = grad_phi.mul_(phi > RELU_FLOOR if kind == "relu" else phi)
    if kind == "hyperbolic":
        positive, negative = grad_projected.chunk(2, -1)
        grad_projected = positive - negative
    return grad_projected if projection is None else grad_projected @ projection.mT
