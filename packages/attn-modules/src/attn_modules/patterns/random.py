"""Patterns drawn at random, as bool tensors where True keeps a key."""

from __future__ import annotations

import torch
from torch import Tensor


def random_pattern(
    attn_size: int, sparsity: float, *, generator: torch.Generator | None = None
) -> Tensor:
    """Hide each key from each query with chance `sparsity`: [N, N].

    Raises: ValueError unless 0 < sparsity < 1.
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"random_pattern: expected a sparsity between 0 and 1, got {sparsity}")
    return torch.rand(attn_size, attn_size, generator=generator) > sparsity


def random_pattern_from_probability_matrix(
    dist_matrix: Tensor, nnz: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw `nnz` different entries, one after the other, each with chances as `dist_matrix` says.

    dist_matrix: not negative, of any shape and sum; the result has its shape. Of any size: entries
        race, with exponential times, which draws as one after the other would.
    Raises: ValueError if an entry is negative, or less than `nnz` are positive.
    Source: Efraimidis & Spirakis 2006, doi:10.1016/j.ipl.2005.11.003.
    """
    rates = dist_matrix.flatten().double()
    if bool((rates < 0).any()) or int((rates > 0).sum()) < nnz:
        raise ValueError(
            f"random_pattern_from_probability_matrix: expected nothing negative, and nnz={nnz} "
            f"positive entries or more, got {int((rates > 0).sum())} of them"
        )
    times = torch.empty_like(rates).exponential_(generator=generator) / rates
    first = times.topk(nnz, largest=False).indices
    pattern = torch.zeros_like(rates, dtype=torch.bool)
    pattern[first] = True
    return pattern.reshape(dist_matrix.shape)
