"""Patterns as masks of blocks for kernels, made without a matrix of queries by keys.

Each is the mask that `to_block_mask(pattern, block_size, covering=True)` makes of the dense
pattern whose arguments it takes: it shows the blocks that the pattern keeps anything of. With
blocks of 1 that is the pattern itself.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch

from attn_modules.patterns import _block_lists, n_dimensional, one_dimensional, two_dimensional
from attn_modules.patterns.big_bird import big_bird_block_mask
from attn_ops.fmha.attn_bias import AlibiBias

if TYPE_CHECKING:
    from torch import Tensor

    from attn_ops.fmha.attn_bias import BlockSparseMask

_MOST_PAIRS_AT_ONCE: Final = 2**20
"""Of blocks, where lists are found by a matrix product."""


def local_1d_block_mask(attn_size: int, window_size: int, block_size: int) -> BlockSparseMask:
    """Show windows; `LocalAttentionFromBottomRightMask` shows them without more, for any block."""
    one_dimensional.check_window(window_size)
    return _band(attn_size, window_size // 2, block_size)


def dilated_1d_block_mask(
    attn_size: int, window_size: int, block_size: int, dilation: int = 2
) -> BlockSparseMask:
    """Show windows of every `dilation`-th token."""
    one_dimensional.check_window(window_size, dilation)
    reach = window_size // 2
    return _at_offsets(
        (attn_size,), torch.arange(-reach, reach + 1)[:, None] * dilation, block_size
    )


def causal_1d_block_mask(attn_size: int, block_size: int) -> BlockSparseMask:
    """Show earlier tokens, and no later one within a block either."""
    count = _block_lists.num_blocks(attn_size, block_size)
    rows, columns = torch.tril_indices(count, count)
    return replace(_block_lists.from_pairs(rows, columns, count, block_size), causal=True)


def global_token_block_mask(attention_query_mask: Tensor, block_size: int) -> BlockSparseMask:
    """Show all to global tokens, and them to all."""
    one_dimensional.check_token_mask(attention_query_mask)
    count = _block_lists.num_blocks(len(attention_query_mask), block_size)
    chosen = (attention_query_mask.nonzero()[:, 0] // block_size).unique()
    few, all_blocks = chosen.repeat_interleave(count), torch.arange(count).repeat(len(chosen))
    rows, columns = torch.cat([few, all_blocks]), torch.cat([all_blocks, few])
    return _block_lists.from_pairs(rows, columns, count, block_size)


def random_block_mask(
    attn_size: int, num_random_blocks: int, block_size: int, *, num_heads: int = 1, seed: int = 0
) -> BlockSparseMask:
    """Show so many blocks to each block of queries, drawn by `seed`; see `big_bird_block_mask`."""
    mask = big_bird_block_mask(
        _block_lists.num_blocks(attn_size, block_size),
        block_size,
        num_random_blocks=num_random_blocks,
        num_sliding_window_blocks=0,
        num_global_blocks=0,
        num_heads=num_heads,
        seed=seed,
    )
    return replace(mask, indices=mask.indices[: int(mask.offsets[-1, -1])])


def local_2d_block_mask(
    H: int, W: int, distance: float, block_size: int, p: float = 2.0
) -> BlockSparseMask:
    """Show pixels that are near in the norm `p`; raises ValueError if that is less than 1."""
    if p < 1:
        raise ValueError(f"local_2d_block_mask: expected a norm p of 1 or more, got {p}")
    reach = math.ceil(min(max(distance, 0.0), max(H, W)))
    width = 2 * reach + 1
    middle = width * reach + reach
    is_near = n_dimensional.distance_from(middle, width, width, p=p) < distance
    offsets = n_dimensional.grid_places(width, width)[is_near] - reach
    return _at_offsets((H, W), offsets, block_size)


def axial_2d_block_mask(H: int, W: int, block_size: int) -> BlockSparseMask:
    """Show the row and the column."""
    row, column = n_dimensional.grid_places(H, W).unbind(1)
    return _sharing([row, column], block_size)


def swin_block_mask(
    H: int, W: int, window_size: int, block_size: int, shift_size: int = 0
) -> BlockSparseMask:
    """Show the window; just that if `block_size` divides `window_size` and `shift_size`."""
    return _sharing([two_dimensional.swin_windows(H, W, window_size, shift_size)], block_size)


def dilated_2d_block_mask(H: int, W: int, block_size: int, k: int = 2) -> BlockSparseMask:
    """Show every k-th row's every k-th pixel."""
    return _sharing([two_dimensional.dilated_2d_phases(H, W, k)], block_size)


def alibi_block_mask(
    threshold: float, num_heads: int, attn_size: int, block_size: int
) -> BlockSparseMask:
    """Show keys whose scores ALiBi lowers by less than `threshold`: a window for each head."""
    slopes = AlibiBias.for_heads(num_heads).slopes.tolist()
    # The farthest distance d with slope * d < threshold; below 0, nothing is seen.
    reaches = [math.ceil(min(threshold / slope, attn_size + 1)) - 1 for slope in slopes]
    return _block_lists.stack_heads([_band(attn_size, reach, block_size) for reach in reaches])


def _band(attn_size: int, reach: int, block_size: int) -> BlockSparseMask:
    """Show tokens up to `reach` away; none if it is negative."""
    count = _block_lists.num_blocks(attn_size, block_size)
    width = 2 * min(math.ceil(reach / block_size), count) + 1 if reach >= 0 else 0
    across = torch.arange(width) - width // 2
    rows = torch.arange(count).repeat_interleave(len(across))
    columns = rows + across.repeat(count)
    is_inside = (columns >= 0) & (columns < count)
    return _block_lists.from_pairs(rows[is_inside], columns[is_inside], count, block_size)


def _at_offsets(sizes: tuple[int, ...], offsets: Tensor, block_size: int) -> BlockSparseMask:
    """Show to each place of a grid those at `offsets` [count, axes] from it."""
    places, limits = n_dimensional.grid_places(*sizes), torch.tensor(sizes)
    strides = torch.tensor([math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))])
    count = _block_lists.num_blocks(len(places), block_size)
    pairs = [offsets.new_empty(0)]
    for offset in offsets:
        seen = places + offset
        is_inside = ((seen >= 0) & (seen < limits)).all(1)
        keys = seen[is_inside] @ strides
        queries = is_inside.nonzero()[:, 0]
        pairs.append(((queries // block_size) * count + keys // block_size).unique())
    joined = torch.cat(pairs)
    return _block_lists.from_pairs(joined // count, joined % count, count, block_size)


def _sharing(classes: list[Tensor], block_size: int) -> BlockSparseMask:
    """Show to each token those with which it shares a class; each of `classes` is int64 [N]."""
    count = _block_lists.num_blocks(len(classes[0]), block_size)
    block = torch.arange(len(classes[0])) // block_size
    members = []
    for number in classes:
        member = torch.zeros(count, int(number.max()) + 1 if count > 0 else 0)
        member[block, number] = 1.0
        members.append(member)
    member = torch.cat(members, 1)
    at_once = max(_MOST_PAIRS_AT_ONCE // max(count, 1), 1)
    found = [(some @ member.T > 0).nonzero() for some in member.split(at_once)]
    firsts = itertools.count(0, at_once)
    rows = torch.cat([pairs[:, 0] + first for pairs, first in zip(found, firsts, strict=False)])
    columns = torch.cat([pairs[:, 1] for pairs in found])
    return _block_lists.from_pairs(rows, columns, count, block_size)
