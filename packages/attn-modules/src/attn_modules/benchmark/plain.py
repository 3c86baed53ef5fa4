"""What one writes in plain torch: windows in blocks, and causal random features in chunks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Let query i see the keys 0 <= i - j <= window, a block of `window` rows at a time.

    Each block of queries meets its own block of keys and the one before. Shapes: [B, H, M, K], M
    a multiple of `window`.
    """
    blocks = [x.unflatten(2, (-1, window)) for x in (q, k, v)]
    queries = blocks[0]
    keys, values = (torch.cat([_block_before(x), x], 3) for x in blocks[1:])
    place = torch.arange(window)
    distance = place[:, None] + window - torch.arange(2 * window)
    is_seen = (distance >= 0) & (distance <= window)
    is_seen = is_seen.repeat(queries.shape[2], 1, 1)
    is_seen[0, :, :window] = False
    scores = queries @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores.masked_fill(~is_seen, -torch.inf).softmax(-1) @ values).flatten(2, 3)


def _block_before(x: Tensor) -> Tensor:
    """Return [B, H, blocks, window, K] moved on by one block; the first has zeros before it."""
    return pad(x[:, :, :-1], (0, 0, 0, 0, 1, 0))


def softmax_features(x: Tensor, projection: Tensor, greatest: Tensor | None = None) -> Tensor:
    """Return exp(x Omega - |x|^2 / 2 - greatest) / sqrt(m) for x, scaled by K^-1/4.

    greatest: what keeps exponents small, by default the greatest of each row.
    Source: Choromanski et al. 2020, arXiv:2009.14794, lemma 1.
    """
    x = x * x.shape[-1] ** -0.25
    exponent = x @ projection - x.square().sum(-1, keepdim=True) / 2
    if greatest is None:
        greatest = exponent.amax(-1, keepdim=True)
    return (exponent - greatest).exp() * projection.shape[-1] ** -0.5


def attend_by_features(
    q: Tensor, k: Tensor, v: Tensor, projection: Tensor, chunk: int = 256
) -> Tensor:
    """Let query i see the keys j <= i through features, with sums carried from chunk to chunk.

    The keys' exponents are not bounded, which suits inputs of moderate length alone. Shapes:
    [B, H, M, K], M a multiple of `chunk`; projection [K, m].
    """
    phi_q = softmax_features(q, projection)
    phi_k = softmax_features(k, projection, k.new_zeros(()))
    values = pad(v, (0, 1), value=1.0)  # the last column sums the weights
    sums = values.new_zeros(*q.shape[:2], projection.shape[-1], values.shape[-1])
    parts = []
    for rows in range(0, q.shape[2], chunk):
        a, b, c = (x[:, :, rows : rows + chunk] for x in (phi_q, phi_k, values))
        parts.append((a @ b.transpose(-1, -2)).tril() @ c + a @ sums)
        sums = sums + b.transpose(-1, -2) @ c
    out = torch.cat(parts, 2)
    return out[..., :-1] / out[..., -1:]


def multiply_as_features_do(
    q: Tensor, k: Tensor, v: Tensor, projection: Tensor, chunk: int = 256
) -> list[Tensor]:
    """Return the products of `attend_by_features`, of other numbers, and nothing else."""
    phi_q, phi_k = q @ projection, k @ projection
    products = []
    for rows in range(0, q.shape[2], chunk):
        a, b, c = (x[:, :, rows : rows + chunk] for x in (phi_q, phi_k, v))
        products += [(a @ b.transpose(-1, -2)) @ c, a @ (b.transpose(-1, -2) @ c)]
    return products
