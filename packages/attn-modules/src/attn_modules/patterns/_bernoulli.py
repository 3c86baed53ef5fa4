"""The pattern where each block is drawn by itself, as lists that are sampled directly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attn_modules._scrambling import scramble
from attn_modules.patterns._block_lists import compact
from attn_ops.fmha.attn_bias import BlockSparseMask


def bernoulli_block_mask(
    num_blocks: int,
    block_size: int,
    *,
    r: float,
    causal: bool = False,
    seed: int | Tensor = 0,
    device: torch.device | str | None = None,
) -> BlockSparseMask:
    """Make lists that hold each block with probability r, in time and memory of what they hold.

    Along a row of blocks, the distance from one that is listed to the next is geometrically
    distributed; it depends on the seed, the row and how many came before. So masks of more blocks
    extend those of fewer.

    num_blocks: of queries, and as many of keys.
    r: in (0, 1).
    causal: leave out the blocks after the diagonal, and let query i see keys j <= i alone.
    seed: 0 to 2^32 - 1, or an int64 tensor [] of that: decides alone what is drawn, on any device.
    No shape depends on what is drawn, so that it compiles; the indices may end in some that no
    list has. There is room for a row of 28 more than twice as many blocks as are expected, and one
    in 10^15 rows would have more; it lacks its last.
    Raises: ValueError if `r` is out of its range.
    """
    if not 0.0 < r < 1.0:
        raise ValueError(f"bernoulli_block_mask: expected r in (0, 1), got {r}")
    seed = torch.as_tensor(seed, dtype=torch.int64, device=device)
    rows = torch.arange(num_blocks + 1, device=seed.device)
    room = min(int(2 * r * num_blocks) + 28, num_blocks)
    blocks = _draw(rows[:-1, None], rows[:-1][:room], r, seed)
    last = rows[:-1, None] if causal else num_blocks - 1
    offsets, indices = compact(
        blocks.flatten(), (blocks <= last).flatten(), (rows * room).unsqueeze(0)
    )
    return BlockSparseMask(offsets, indices, block_size, causal)


def _draw(rows: Tensor, steps: Tensor, r: float, seed: Tensor) -> Tensor:
    """Return ascending blocks int64 [rows, steps], each drawn with probability r; rows [rows, 1].

    Each row scrambles a Weyl sequence of its own, as SplitMix does.
    Source: Steele et al. 2014, doi:10.1145/2660193.2660195.
    """
    draws = scramble(scramble(scramble(seed) ^ rows) + (steps + 1) * 0x9E3779B9)
    uniform = (draws + 1).double() * 2.0**-32  # in (0, 1]
    misses = (uniform.log() / math.log1p(-r)).floor()  # before each hit
    misses = misses.clamp(max=2.0**31).long()  # more than any row has, and sums stay in int64
    return (misses + 1).cumsum(1) - 1
