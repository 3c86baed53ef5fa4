"""Ways to choose landmarks among the rows of a sequence: drawn, least parallel, or clustered.

Nothing here has as many elements as rows times landmarks, unless that is no more than the rows
themselves have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from attn_modules._scrambling import scramble

if TYPE_CHECKING:
    from collections.abc import Iterator

LLOYD_ITERATIONS = 6
"""How often clusters are formed anew."""

_BEYOND_COSINES = 2.0
"""How near padding is to any pick: it comes after every row, and before picking a row twice."""


class Candidates(NamedTuple):
    """Rows to choose from, or those chosen."""

    rows: Tensor
    """[B, H, N, K]"""
    keep: Tensor | None
    """bool [B or 1, H or 1, N]: False is padding, which may hold anything. None: all are rows."""


def take(candidates: Candidates, index: Tensor) -> Candidates:
    """Return the rows at `index` [B or 1, H or 1, m]; what is padding there is 0."""
    batch, heads, _, width = candidates.rows.shape
    places = index.unsqueeze(-1).expand(batch, heads, -1, width)
    rows = candidates.rows.gather(2, places)
    if candidates.keep is None:
        return Candidates(rows, None)
    shape = torch.broadcast_shapes(candidates.keep.shape[:2], index.shape[:2])
    keep = candidates.keep.expand(*shape, -1).gather(2, index.expand(*shape, -1))
    return Candidates(rows.masked_fill(~keep.unsqueeze(-1), 0.0), keep)


def draw(candidates: Candidates, count: int, seed: Tensor) -> Tensor:
    """Draw `count` places without replacement, [B or 1, H or 1, count], padding only at last.

    A row's chance depends on `seed` and on how many kept rows come before it, not on padding.
    """
    if candidates.keep is None:
        rank = torch.arange(candidates.rows.shape[2], device=candidates.rows.device)[None, None]
    else:
        rank = candidates.keep.cumsum(-1) - 1
    order = scramble(scramble(seed) ^ rank)
    if candidates.keep is not None:
        order = order.masked_fill(~candidates.keep, 2**32)
    return order.topk(count, largest=False).indices


def pick_orthogonal(candidates: Candidates, count: int, seed: Tensor) -> Tensor:
    """Return places [B, H, count]: the first drawn, then ever the row least parallel to any yet.

    That is the row whose largest absolute cosine with the rows picked is the least. Padding is
    picked only when there is nothing else.
    """
    rows, keep = candidates
    lengths = rows.norm(dim=-1).clamp_min(1e-12)
    place = draw(candidates, 1, seed).expand(*rows.shape[:2], 1)
    nearness = torch.zeros_like(lengths)  # [B, H, N] largest cosine to any pick
    if keep is not None:
        nearness = nearness.masked_fill(~keep, _BEYOND_COSINES)
    places = [place]
    for _ in range(count - 1):
        picked = rows.gather(2, place.unsqueeze(-1).expand(-1, -1, -1, rows.shape[-1]))
        picked = picked / lengths.gather(2, place).unsqueeze(-1)
        cosine = (rows @ picked.mT).squeeze(-1).abs() / lengths
        # A NaN in padding compares as nothing does: `where` leaves it out, `maximum` would not.
        nearness = torch.where(cosine > nearness, cosine, nearness)
        nearness = nearness.scatter(2, place, torch.inf)
        place = nearness.argmin(-1, keepdim=True)
        places.append(place)
    return torch.cat(places, -1)


def cluster(candidates: Candidates, first: Tensor, *, by_angle: bool) -> Candidates:
    """Return the means [B, H, m, K] of clusters that begin around the places `first`.

    by_angle: a row belongs to the centre of the least angle, where centres are the mean
        directions of their rows; else to that of the least distance. The result is in either case
        the mean of the rows as they are, so that its scale is theirs.
    A cluster without rows keeps its centre. Where there are fewer rows than clusters, those too
    many are marked as padding.
    """
    rows = candidates.rows
    if candidates.keep is not None:
        rows = rows.masked_fill(~candidates.keep.unsqueeze(-1), 0.0)
    centres, used = take(candidates, first)
    guide, means = (_direction(rows), centres) if by_angle else (rows, centres)
    centres = _direction(centres) if by_angle else centres
    for iteration in range(LLOYD_ITERATIONS):
        nearest = _nearest(guide, centres, used)
        if by_angle:
            if iteration == LLOYD_ITERATIONS - 1:
                means = _means(rows, nearest, candidates.keep, means)
            centres = _direction(_means(guide, nearest, candidates.keep, centres))
        else:
            centres = means = _means(rows, nearest, candidates.keep, centres)
    return Candidates(means, used)


def _direction(rows: Tensor) -> Tensor:
    return functional.normalize(rows, dim=-1)


def _nearest(rows: Tensor, centres: Tensor, used: Tensor | None) -> Tensor:
    """Return the index [B, H, N] of the centre at the least distance among those in use."""
    # |x - c|^2 less what is the same for all centres, halved and turned round.
    offset = -0.5 * centres.square().sum(-1)
    if used is not None:
        offset = offset.masked_fill(~used, -torch.inf)
    parts = [
        (rows[:, :, part] @ centres.mT + offset.unsqueeze(2)).argmax(-1)
        for part in _parts(rows, centres.shape[2])
    ]
    return torch.cat(parts, -1)


def _means(rows: Tensor, nearest: Tensor, keep: Tensor | None, centres: Tensor) -> Tensor:
    """Return the mean of each centre's kept rows, or the centre if it has none."""
    index = torch.arange(centres.shape[2], device=rows.device)
    sums = torch.zeros_like(centres)
    counts = rows.new_zeros(*centres.shape[:3], 1)
    for part in _parts(rows, len(index)):
        # As a product, whose order of addition is fixed, where atomic additions' is not.
        belongs = nearest[:, :, part].unsqueeze(2) == index[:, None]
        if keep is not None:
            belongs = belongs & keep[:, :, None, part]
        belongs = belongs.to(rows.dtype)
        sums = sums + belongs @ rows[:, :, part]
        counts = counts + belongs.sum(-1, keepdim=True)
    return torch.where(counts > 0, sums / counts.clamp_min(1), centres)


def _parts(rows: Tensor, clusters: int) -> Iterator[slice]:
    """Cut the rows so that a part times the clusters is no larger than the rows."""
    length, width = rows.shape[2:]
    step = -(-length * width // max(clusters, width))
    for begin in range(0, length, step):
        yield slice(begin, begin + step)
