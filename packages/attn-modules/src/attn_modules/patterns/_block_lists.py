"""The lists of a `BlockSparseMask`, made without a matrix of blocks by blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from attn_ops.fmha.attn_bias import BlockSparseMask


def num_blocks(extent: int, block_size: int) -> int:
    """Return how many blocks hold `extent` queries or keys; the last one may be incomplete.

    Raises: ValueError if `block_size` is less than 1.
    """
    if block_size < 1:
        raise ValueError(f"patterns: expected block_size of 1 or more, got {block_size}")
    return (extent + block_size - 1) // block_size


def compact(entries: Tensor, is_listed: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Return offsets and indices of the listed entries, which stay in their order.

    Shapes: entries and is_listed [count]; starts int64 [heads, rows + 1], where among the entries
        each row's list begins and ends; offsets as starts; indices [count], of which those beyond
        the last list hold nothing. No shape depends on a value, so that compilers can follow.
    """
    before = torch.nn.functional.pad(is_listed.cumsum(0), (1, 0))
    last = max(entries.shape[0] - 1, 0)  # free if anything is not listed
    places = torch.where(is_listed, before[:-1], last)
    indices = torch.zeros_like(entries).scatter(0, places, entries)
    return before[starts].to(torch.int32), indices.to(torch.int32)


def crop(mask: BlockSparseMask, query_blocks: int, key_blocks: int) -> BlockSparseMask:
    """Return the mask of the first blocks of queries and keys."""
    starts = mask.offsets[:, : query_blocks + 1].long()
    offsets, indices = compact(mask.indices, mask.indices < key_blocks, starts)
    return BlockSparseMask(offsets, indices, mask.block_size, mask.causal)


def from_pairs(rows: Tensor, columns: Tensor, count: int, block_size: int) -> BlockSparseMask:
    """Make a mask of the pairs of a query block and a key block, both below `count`.

    Shapes: rows and columns int64 [pairs], in any order; pairs may come more than once.
    """
    pairs = torch.unique(rows * count + columns)
    lengths = torch.bincount(pairs // max(count, 1), minlength=count)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).unsqueeze(0)
    indices = pairs % max(count, 1)
    return BlockSparseMask(offsets.to(torch.int32), indices.to(torch.int32), block_size)


def stack_heads(masks: list[BlockSparseMask]) -> BlockSparseMask:
    """Make a mask of one pattern for each head from masks that have one for all heads."""
    firsts = [0]
    for mask in masks[:-1]:
        firsts.append(firsts[-1] + mask.indices.shape[0])
    offsets = torch.cat([mask.offsets + first for mask, first in zip(masks, firsts, strict=True)])
    indices = torch.cat([mask.indices for mask in masks])
    return BlockSparseMask(offsets, indices, masks[0].block_size, masks[0].causal)
