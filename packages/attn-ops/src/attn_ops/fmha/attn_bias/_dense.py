"""What a `MaskSpec` lets each query see and adds to its scores, as dense tensors.

For debugging, tests and pictures; kernels evaluate the same parts without making any of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attn_ops.mask import ANCHOR_BOTTOM_RIGHT, Blocks, MaskSpec, Pages, Sequences

if TYPE_CHECKING:
    from collections.abc import Iterator


def materialize(
    spec: MaskSpec, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """Return what `spec` adds to the scores, -inf where a key is not seen.

    Shapes: `shape` [..., Mq, Mkv], or [..., Hq, Mq, Mkv] where heads differ.
    Raises: ValueError if heads or blocks do not fit `shape`.
    """
    places = locate(spec, shape[-2], shape[-1])
    seen = _by_head(seen_at(spec, places), shape)
    total = torch.zeros(shape[-2:], dtype=dtype)
    relative = spec.relative
    if relative.slopes is not None:
        slopes = relative.slopes.detach().cpu().double()
        distance = places.distance.abs()
        total = total + _by_head(-slopes[:, None, None] * distance, shape).to(dtype)
    if relative.table is not None:
        table = relative.table.detach().cpu()
        radius = table.shape[1] // 2
        columns = places.distance.clamp(-radius, radius) + radius
        total = total + _by_head(table[:, columns], shape).to(dtype)
    if spec.bias is not None:
        bias = spec.bias.detach().cpu()
        if bias.dtype == torch.bool:
            seen = seen & bias
        else:
            total = total + bias.to(dtype)
    return torch.where(seen, total, float("-inf")).to(device).expand(shape)


@dataclass(frozen=True)
class Places:
    """Where rows of memory lie in their sequences, [rows of query, rows of key]."""

    queries: Tensor
    """int64 [rows of query]: the rows themselves."""
    keys: Tensor
    """int64 [rows of key]."""
    sequence: Tensor
    """int64: the sequence that owns both, or -1; 0 if there are no sequences."""
    distance: Tensor
    """int64: of the key from the band's diagonal."""


def locate(
    spec: MaskSpec,
    num_queries: int,
    num_keys: int,
    queries: Tensor | None = None,
    keys: Tensor | None = None,
) -> Places:
    """Return the places of rows `queries` and `keys` (default: all) of Mq and Mkv."""
    queries = torch.arange(num_queries) if queries is None else queries
    keys = torch.arange(num_keys) if keys is None else keys
    at_end = spec.band.anchor == ANCHOR_BOTTOM_RIGHT
    if spec.sequences is None:
        shift = num_keys - num_queries if at_end else 0
        distance = keys - (queries[:, None] + shift)
        return Places(queries, keys, torch.zeros_like(distance), distance)
    sequence = torch.full((len(queries), len(keys)), -1)
    distance = torch.zeros_like(sequence)
    for s, (first, last, slots) in enumerate(_members(spec.sequences, spec.pages)):
        place_of_slot = torch.full((num_keys,), -1)
        inside = slots < num_keys
        place_of_slot[slots[inside]] = torch.arange(len(slots))[inside]
        shift = len(slots) - (last - first) if at_end else 0
        j = place_of_slot[keys]
        owns = ((queries >= first) & (queries < last))[:, None] & (j >= 0)
        sequence[owns] = s
        distance = torch.where(owns, j - (queries[:, None] - first + shift), distance)
    return Places(queries, keys, sequence, distance)


def seen_at(spec: MaskSpec, places: Places) -> Tensor:
    """Return which keys are seen through band, sequences and blocks, bool [..., Mq, Mkv].

    Raises: ValueError if there are fewer blocks than queries need.
    """
    band = spec.band
    seen = places.sequence >= 0
    seen = seen & (places.distance >= -band.left) & (places.distance <= band.right)
    if spec.blocks is not None:
        pattern = _block_pattern(spec.blocks, places)
        rows, columns = (at // spec.blocks.block_size for at in (places.queries, places.keys))
        seen = seen & pattern[:, rows[:, None], columns]
    return seen


def _members(sequences: Sequences, pages: Pages | None) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the first and last query of each sequence, and the rows of its keys in their order."""
    q_start, k_start = sequences.q_start.tolist(), sequences.k_start.tolist()
    for s in range(len(q_start) - 1):
        end = k_start[s + 1] if sequences.k_len is None else k_start[s] + int(sequences.k_len[s])
        slots = torch.arange(k_start[s], end)
        if pages is not None:
            size = pages.page_size
            slots = pages.block_table[s].cpu()[slots // size] * size + slots % size
        yield q_start[s], q_start[s + 1], slots


def _block_pattern(blocks: Blocks, places: Places) -> Tensor:
    """Return which blocks are listed, bool [1 or Hq, query blocks, key blocks]."""
    size = blocks.block_size
    offsets, indices = blocks.offsets.cpu(), blocks.indices.cpu().long()
    heads, rows = offsets.shape[0], offsets.shape[1] - 1
    if len(places.queries) > 0 and int(places.queries.max()) >= rows * size:
        raise ValueError(
            f"BlockSparseMask: expected at most {rows * size} queries, {rows} blocks of {size}, "
            f"got {int(places.queries.max()) + 1}"
        )
    last = max((int(at.max()) for at in (places.keys // size, indices) if len(at) > 0), default=0)
    pattern = torch.zeros(heads, rows, last + 1, dtype=torch.bool)
    counts = offsets.diff(dim=1).reshape(-1)
    lists = torch.repeat_interleave(torch.arange(heads * rows), counts)
    entries = torch.cat([indices[starts[0] : starts[-1]] for starts in offsets.tolist()])
    pattern.view(heads * rows, last + 1)[lists, entries] = True
    return pattern


def _by_head(by_head: Tensor, shape: tuple[int, ...]) -> Tensor:
    """View [Hq, Mq, Mkv] as heads of `shape`, which has them as one axis, or as [G, H].

    Raises: ValueError if `shape` has none, or another number.
    """
    if by_head.dim() == 2 or by_head.shape[0] == 1:
        return by_head.reshape(by_head.shape[-2:])
    heads = by_head.shape[0]
    if len(shape) >= 3 and shape[-3] == heads:
        return by_head
    if len(shape) == 5 and shape[1] * shape[2] == heads:
        return by_head.unflatten(0, shape[1:3])
    raise ValueError(
        f"materialize: expected shape [..., {heads}, Mq, Mkv], as the mask has {heads} heads, got "
        f"{shape}"
    )
