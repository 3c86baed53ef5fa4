"""Layouts, which blocks of keys each block of queries sees, and their way to patterns and masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attn_modules.patterns import _block_lists
from attn_modules.patterns.big_bird import big_bird_block_mask
from attn_ops.fmha.attn_bias import BlockSparseMask

if TYPE_CHECKING:
    from collections.abc import Sequence


def pattern_to_layout(mask: Tensor, block_size: int) -> Tensor:
    """Return which blocks hold anything that a pattern keeps: int64 [H, query blocks, key blocks].

    mask: [H, Mq, Mkv] or [Mq, Mkv], bool or a number where 0 hides; the last blocks may be
        incomplete. Without H the layout has none either.
    Raises: ValueError if `mask` has other axes.
    """
    return _any_in_block(mask, block_size).to(torch.int64)


def layout_to_pattern(layout: Tensor, block_size: int) -> Tensor:
    """Return the keys of the blocks that a layout names: bool [H, Mq, Mkv].

    layout: [H, query blocks, key blocks] or [query blocks, key blocks], where 0 hides.
    """
    rows = (layout != 0).repeat_interleave(block_size, dim=-2)
    return rows.repeat_interleave(block_size, dim=-1)


def to_block_mask(
    pattern: Tensor, block_size: int, *, covering: bool = False, causal: bool = False
) -> BlockSparseMask:
    """Make a mask for kernels of a dense pattern.

    pattern: bool [H, Mq, Mkv] or [Mq, Mkv], True keeps a key.
    covering: let queries see the whole of the blocks that the pattern keeps anything of, as
        `pattern_to_layout` does; otherwise the mask means just what the pattern does.
    causal: besides, query i sees keys j <= i alone; those after it do not count.
    Raises: ValueError if the pattern keeps a part of a block and `covering` is not asked for.
    """
    layout = _any_in_block(pattern, block_size)
    if not covering:
        whole = layout_to_pattern(layout, block_size)[..., : pattern.shape[-2], : pattern.shape[-1]]
        differs = whole != (pattern != 0)
        if bool((differs.tril() if causal else differs).any()):
            raise ValueError(
                f"to_block_mask: expected a pattern of whole blocks of {block_size}, got one that "
                "keeps a part of some; pass covering=True to see them whole, or block_size=1"
            )
    if causal:
        layout = layout.tril()
    return BlockSparseMask.from_pattern(layout, block_size, causal=causal)


def mask_to_layout(mask: BlockSparseMask, key_blocks: int) -> Tensor:
    """Return the blocks that a mask lists: bool [H or 1, query blocks, key_blocks].

    A layout does not say whether the mask is causal within blocks; `mask.causal` does.
    """
    heads, rows = mask.offsets.shape[0], mask.offsets.shape[1] - 1
    lengths = mask.offsets.diff(dim=1).flatten()
    row = torch.arange(heads * rows, device=lengths.device).repeat_interleave(lengths)
    # A cropped mask has entries between its lists, so that each list has its own place.
    skipped = mask.offsets[:, :-1].flatten() - (lengths.cumsum(0) - lengths)
    entry = torch.arange(len(row), device=lengths.device) + skipped[row]
    layout = torch.zeros(heads * rows, key_blocks, dtype=torch.bool, device=lengths.device)
    layout[row, mask.indices[entry].long()] = True
    return layout.unflatten(0, (heads, rows))


def crop_blocks(mask: BlockSparseMask, num_queries: int, num_keys: int) -> BlockSparseMask:
    """Return the mask of the first queries and keys, whose last blocks may be incomplete.

    No shape depends on a value, so that it compiles; the indices may end in some that no list has.
    """
    extents = (_block_lists.num_blocks(n, mask.block_size) for n in (num_queries, num_keys))
    return _block_lists.crop(mask, *extents)


def block_sparsify_tensor(x: Tensor, mask: Tensor, block_size: int) -> Tensor:
    """Gather the blocks that a layout names, in the order of heads, then rows, then columns.

    Shapes: x [B, H, Mq, Mkv], whose last blocks may be incomplete: zeros complete them; mask [H,
        query blocks, key blocks], where 0 leaves out; result [B, count, block_size, block_size].
    Raises: ValueError if `mask` is not for the blocks of `x`.
    """
    blocks = _blocks(x, block_size).movedim(-3, -2)
    if mask.shape != blocks.shape[1:4]:
        raise ValueError(
            f"block_sparsify_tensor: expected mask {list(blocks.shape[1:4])} for x "
            f"{list(x.shape)} in blocks of {block_size}, got {list(mask.shape)}"
        )
    return blocks[:, mask != 0]


def quick_fixed_layout(
    num_heads: int,
    block_size: int,
    seq_len: int,
    *,
    num_local_blocks: int = 4,
    num_global_blocks: int = 1,
) -> Tensor:
    """Return the fixed layout of Sparse Transformers, int64 [num_heads, blocks, blocks].

    Blocks see those of their own group of `num_local_blocks`, and the last `num_global_blocks` of
    every group. Raises: ValueError unless groups are a multiple of `num_global_blocks`.
    Source: Child et al. 2019, arXiv:1904.10509, section 4.3.
    """
    if num_global_blocks < 1 or num_local_blocks % num_global_blocks != 0:
        raise ValueError(
            "quick_fixed_layout: expected num_local_blocks, a multiple of num_global_blocks, got "
            f"{num_local_blocks} and {num_global_blocks}"
        )
    count = _block_lists.num_blocks(seq_len, block_size)
    blocks = torch.arange(count)
    group = blocks // num_local_blocks
    end = ((group + 1) * num_local_blocks).clamp(max=count)  # the last group may be short
    is_global = blocks >= end - num_global_blocks
    return _for_heads((group[:, None] == group) | is_global, num_heads)


def quick_variable_layout(
    num_heads: int,
    block_size: int,
    seq_len: int,
    *,
    local_window_blocks: Sequence[int] = (4,),
    global_block_indices: Sequence[int] = (0,),
) -> Tensor:
    """Return a layout of groups of different sizes, int64 [num_heads, blocks, blocks].

    Blocks see those of their own group, and those of `global_block_indices`. The last of
    `local_window_blocks` is the size of all further groups.
    """
    count = _block_lists.num_blocks(seq_len, block_size)
    blocks = torch.arange(count)
    ends = torch.tensor(local_window_blocks).cumsum(0)
    further = (blocks - ends[-1]).clamp(min=-1).div(local_window_blocks[-1], rounding_mode="floor")
    group = torch.bucketize(blocks, ends, right=True) + further.clamp(min=0)
    is_global = torch.isin(blocks, torch.tensor(global_block_indices))
    return _for_heads((group[:, None] == group) | is_global, num_heads)


def quick_bigbird_layout(
    num_heads: int, block_size: int, seq_len: int, *, seed: int | None = None
) -> Tensor:
    """Return a layout of BigBird, int64 [num_heads, blocks, blocks]; all heads share it.

    A window of 3 blocks, 1 global block, and 1 random block for each row. seed: 0 to 2^32 - 1;
    default: one drawn by torch's generator.
    Source: Zaheer et al. 2020, arXiv:2007.14062.
    """
    count = _block_lists.num_blocks(seq_len, block_size)
    drawn = torch.randint(2**32, ()) if seed is None else seed
    mask = big_bird_block_mask(
        count, block_size, num_random_blocks=1, num_global_blocks=1, seed=drawn
    )
    return _for_heads(mask_to_layout(mask, count)[0], num_heads)


def quick_bslongformer_layout(num_heads: int, block_size: int, seq_len: int) -> Tensor:
    """Return a layout of Longformer, int64 [num_heads, blocks, blocks].

    A window of 3 blocks; the first block sees all and is seen by all.
    Source: Beltagy et al. 2020, arXiv:2004.05150.
    """
    count = _block_lists.num_blocks(seq_len, block_size)
    mask = big_bird_block_mask(count, block_size, num_random_blocks=0, num_global_blocks=1)
    return _for_heads(mask_to_layout(mask, count)[0], num_heads)


def _any_in_block(pattern: Tensor, block_size: int) -> Tensor:
    if pattern.dim() not in (2, 3):
        raise ValueError(f"patterns: expected [H, Mq, Mkv] or [Mq, Mkv], got {list(pattern.shape)}")
    return _blocks(pattern != 0, block_size).any(-1).any(-2)


def _blocks(x: Tensor, block_size: int) -> Tensor:
    """Return [..., Mq, Mkv] as [..., query blocks, block_size, key blocks, block_size].

    Zeros complete the last blocks.
    """
    rows, columns = (_block_lists.num_blocks(n, block_size) for n in x.shape[-2:])
    missing = columns * block_size - x.shape[-1], rows * block_size - x.shape[-2]
    whole = torch.nn.functional.pad(x, (0, missing[0], 0, missing[1]))
    return whole.unflatten(-2, (rows, block_size)).unflatten(-1, (columns, block_size))


def _for_heads(layout: Tensor, num_heads: int) -> Tensor:
    return layout.to(torch.int64).repeat(num_heads, 1, 1)
