"""What a `MaskSpec` means, brute force: one sequence, one key at a time, dense and in float64.

`i` is the row of query in memory and `slot` that of key; `j` counts the keys of a sequence.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from attn_ops.mask import ANCHOR_BOTTOM_RIGHT, Blocks, MaskSpec, Pages

LOWEST_BIAS = torch.finfo(torch.float32).min / 1.4426950408889634
"""A bias at or below this counts as -infinity: -FLT_MAX / log2(e)."""


@dataclass(frozen=True)
class Places:
    """Where each slot of memory lies in the sequence of each query, [Mq, Mkv]."""

    owned: Tensor
    """bool: the slot holds a key of the query's own sequence."""
    key: Tensor
    """int64: which key of that sequence, j; -1 where not owned."""
    distance: Tensor
    """int64: j - (i + shift), from the band's diagonal; 0 where not owned."""


def places(spec: MaskSpec, num_queries: int, num_slots: int) -> Places:
    """Return the places of all slots.

    Raises: ValueError if a sequence reads one slot as two of its keys, which no dense mask shows.
    """
    found = Places(
        owned=torch.zeros(num_queries, num_slots, dtype=torch.bool),
        key=torch.full((num_queries, num_slots), -1),
        distance=torch.zeros(num_queries, num_slots, dtype=torch.int64),
    )
    for queries, slots in sequences(spec, num_queries, num_slots):
        if len(set(slots)) != len(slots):
            raise ValueError(f"places: expected each slot once in a sequence, got {slots}")
        at_end = spec.band.anchor == ANCHOR_BOTTOM_RIGHT
        shift = len(slots) - len(queries) if at_end else 0
        i, j = torch.arange(len(queries)).unsqueeze(1), torch.arange(len(slots))
        rows, columns = i + queries.start, torch.tensor(slots, dtype=torch.int64)
        found.owned[rows, columns] = True
        found.key[rows, columns] = j
        found.distance[rows, columns] = j - (i + shift)
    return found


def allowed(spec: MaskSpec, B: int, Hq: int, Mq: int, Mkv: int) -> Tensor:
    """Return which slots each query sees: bool [B, Hq, Mq, Mkv]."""
    place = places(spec, Mq, Mkv)
    band = spec.band
    # Unbounded sides are the largest int64, whose negative still is one.
    seen = place.owned & (place.distance >= -band.left) & (place.distance <= band.right)
    seen = seen.expand(B, Hq, Mq, Mkv)
    if spec.blocks is not None:
        seen = seen & _in_blocks(spec.blocks, Mq, Mkv)
    if spec.bias is not None:
        keeps = spec.bias if spec.bias.dtype == torch.bool else spec.bias > LOWEST_BIAS
        seen = seen & keeps
    return seen


def bias(spec: MaskSpec, B: int, Hq: int, Mq: int, Mkv: int) -> Tensor:
    """Return what is added to the scaled scores: float64 [B, Hq, Mq, Mkv], 0 where nothing is seen.

    Differentiable in the spec's bias, slopes and table. Sink and softcap are no part of it.
    """
    place = places(spec, Mq, Mkv)
    total = torch.zeros(B, Hq, Mq, Mkv, dtype=torch.float64)
    if spec.bias is not None and spec.bias.dtype != torch.bool:
        total = total + spec.bias.double()
    slopes, table = spec.relative.slopes, spec.relative.table
    if slopes is not None:
        total = total - slopes.double()[:, None, None] * place.distance.abs()
    if table is not None:
        radius = table.shape[1] // 2
        total = total + table.double()[:, place.distance.clamp(-radius, radius) + radius]
    return torch.where(allowed(spec, B, Hq, Mq, Mkv), total, 0.0)


def materialize(spec: MaskSpec, B: int, Hq: int, Mq: int, Mkv: int) -> Tensor:
    """Return `bias`, -infinity where a slot is not seen: float64 [B, Hq, Mq, Mkv]."""
    sizes = (B, Hq, Mq, Mkv)
    return bias(spec, *sizes).masked_fill(~allowed(spec, *sizes), -torch.inf)


def sequences(spec: MaskSpec, num_queries: int, num_slots: int) -> list[tuple[range, list[int]]]:
    """Return the query rows and the key slots of each sequence, both in its own order."""
    if spec.sequences is None:
        return [(range(num_queries), list(range(num_slots)))]
    q_start = spec.sequences.q_start.tolist()
    k_start = spec.sequences.k_start.tolist()
    if spec.sequences.k_len is None:
        k_len = [end - start for start, end in pairwise(k_start)]
    else:
        k_len = spec.sequences.k_len.tolist()
    found = []
    for s in range(len(q_start) - 1):
        keys = range(k_start[s], k_start[s] + k_len[s])
        slots = list(keys) if spec.pages is None else [_slot(spec.pages, s, t) for t in keys]
        found.append((range(q_start[s], q_start[s + 1]), slots))
    return found


def _slot(pages: Pages, sequence: int, t: int) -> int:
    page, within = divmod(t, pages.page_size)
    return int(pages.block_table[sequence, page]) * pages.page_size + within


def _in_blocks(blocks: Blocks, num_queries: int, num_keys: int) -> Tensor:
    """Return which keys lie in a listed block: bool [1 or Hq, Mq, Mkv]."""
    offsets: Any = blocks.offsets.tolist()
    indices = blocks.indices.tolist()
    size = blocks.block_size
    seen = torch.zeros(len(offsets), num_queries, num_keys, dtype=torch.bool)
    for head, starts in enumerate(offsets):
        for row in range(len(starts) - 1):
            for column in indices[starts[row] : starts[row + 1]]:
                queries = slice(row * size, (row + 1) * size)
                seen[head, queries, column * size : (column + 1) * size] = True
    return seen
