"""The pseudoinverse of matrices of probabilities, by products of matrices alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GROWTH = 13 / 4
"""What a step multiplies the part of the result by that belongs to a small singular value."""


def pseudoinverse(a: Tensor, iterations: int, *, shares_start: bool = False) -> Tensor:
    """Approximate the Moore-Penrose pseudoinverse of each matrix of probabilities.

    A step takes x = s z, the product of a singular value of `a` and of the result's, to
    1 - (1 - x)^3 (1 - x / 4), so that x rises from s^2 / |a|_1 to 1 and never passes it. Whatever
    the matrix, |a z a - a|_2 <= r sqrt(|a|_1) and |z|_2 <= g / sqrt(|a|_1), where |a|_1 is the
    largest sum of a column, and

        steps   1     2     4      6       8       10      13
        r       0.23  0.13  0.041  0.0125  0.0039  0.0012  0.0002
        g       1.3   2.1   6.7    22      71      230     1350

    Small singular values thus stay out of the result, which would multiply errors by their
    inverses. No more steps are made than `useful_steps`: rounding undoes what further ones gain.

    Shapes: a [..., n, m], its rows 0 or of sum 1; result [..., m, n]. Rows and columns of zeros
        give columns and rows of zeros, and change nothing else.
    shares_start: start from the largest sum of a column among all matrices, not the matrix's own;
        then a result depends on the other matrices, and `r` and `g` are in terms of that sum.
    Numerics: in the dtype of `a`.
    Source: Razavi et al. 2014, as in Xiong et al. 2021, arXiv:2102.03902, eq. 11.
    """
    largest = a.sum(-2).amax() if shares_start else a.sum(-2).amax(-1)[..., None, None]
    z = a.mT / largest.clamp_min(torch.finfo(a.dtype).tiny)
    identity = torch.eye(a.shape[-2], dtype=a.dtype, device=a.device)
    for _ in range(min(iterations, useful_steps(a.dtype))):
        az = a @ z
        z = 0.25 * z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az)))
    return z


def useful_steps(dtype: torch.dtype) -> int:
    """Return how many steps lessen the error: 13 for float32, 30 for float64.

    After n of them |z|_2 is up to GROWTH^(n / 2), rounding leaves that times the unit of `dtype` in
    a z, and the error that remains to be lessened is about GROWTH^(-n / 2).
    """
    return int(-math.log(torch.finfo(dtype).eps) / math.log(GROWTH))
