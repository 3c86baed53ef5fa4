"""The pattern of BigBird, local, global and random blocks, as lists that are sampled directly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attn_modules._scrambling import scramble
from attn_modules.patterns._block_lists import compact
from attn_ops import scalars
from attn_ops.fmha.attn_bias import BlockSparseMask


def big_bird_block_mask(
    num_blocks: int,
    block_size: int,
    *,
    num_random_blocks: int = 3,
    num_sliding_window_blocks: int = 3,
    num_global_blocks: int = 2,
    num_heads: int = 1,
    causal: bool = False,
    seed: int | Tensor = 0,
    device: torch.device | str | None = None,
) -> BlockSparseMask:
    """Make lists of local, global and random blocks, in time and memory of what they hold.

    num_blocks: of queries, and as many of keys.
    num_random_blocks: drawn for each block of queries among those that it does not see anyway,
        every set of them being equally likely; fewer where fewer are left.
    num_sliding_window_blocks: an odd number, centred on the block of the queries; or 0.
    num_global_blocks: so many first blocks see all blocks, and all blocks see them.
    num_heads: patterns that have random blocks of their own; 1 is one that all heads share.
    causal: leave out the blocks after the diagonal, and let query i see keys j <= i alone. Then
        the list of a block is the same for every `num_blocks`.
    seed: 0 to 2^32 - 1, or an int64 tensor [] of that: decides alone what is drawn, on any device.
    No shape depends on a value, so that it compiles; the indices may end in some that no list has.
    Raises: ValueError if a number is negative or the window is even.
    Source: Zaheer et al. 2020, arXiv:2007.14062, section 2; Floyd's way to draw: Bentley & Floyd
        1987, doi:10.1145/30401.315746.

    >>> mask = big_bird_block_mask(4, 1, num_random_blocks=0, num_global_blocks=1)
    >>> mask.materialize((4, 4)).exp()
    tensor([[1., 1., 1., 1.],
            [1., 1., 1., 0.],
            [1., 1., 1., 1.],
            [1., 0., 1., 1.]])
    """
    check_counts(num_random_blocks, num_sliding_window_blocks, num_global_blocks, num_heads)
    seed = torch.as_tensor(seed, dtype=torch.int64, device=device)
    regions = _regions(num_blocks, num_sliding_window_blocks, num_global_blocks, seed.device)
    always = torch.cat([regions.global_blocks(), regions.window_blocks()], 1)
    drawn = _draw(regions, num_random_blocks, num_heads, seed, causal=causal)
    seen = torch.cat([always.expand(num_heads, *always.shape), drawn], 2)
    if causal:
        seen = seen.where(seen <= regions.rows[:, None], num_blocks)
    num_full_rows = 0 if causal else regions.num_global
    starts, entries = _entries(seen.sort(2).values, num_full_rows)
    offsets, indices = compact(entries.flatten(), entries.flatten() < num_blocks, starts)
    return BlockSparseMask(offsets, indices, block_size, causal)


def check_counts(
    num_random_blocks: int,
    num_sliding_window_blocks: int,
    num_global_blocks: int,
    num_heads: int,
    who: str = "big_bird_block_mask",
) -> None:
    """Check the numbers of `big_bird_block_mask`, which see."""
    scalars.check_counts(
        who,
        0,
        num_random_blocks=num_random_blocks,
        num_sliding_window_blocks=num_sliding_window_blocks,
        num_global_blocks=num_global_blocks,
    )
    scalars.check_counts(who, num_heads=num_heads)
    if num_sliding_window_blocks > 0 and num_sliding_window_blocks % 2 == 0:
        raise ValueError(
            f"{who}: expected num_sliding_window_blocks, an odd number that counts the block of "
            f"the queries, or 0, got {num_sliding_window_blocks}"
        )


@dataclass(frozen=True)
class _Regions:
    """The blocks that each row sees anyway: [0, num_global) and [begin, end), which are apart."""

    rows: Tensor
    """int64 [blocks]: 0, 1, 2, …"""
    num_global: int
    reach: int
    """The window's blocks on either side of its middle."""
    begin: Tensor
    """int64 [blocks]"""
    end: Tensor
    """int64 [blocks]"""

    def global_blocks(self) -> Tensor:
        """Return [blocks, num_global]."""
        return self.rows[: self.num_global].expand(len(self.rows), self.num_global)

    def window_blocks(self) -> Tensor:
        """Return [blocks, window], where the number of blocks stands for none."""
        across = torch.arange(-self.reach, self.reach + 1, device=self.rows.device)
        window = self.rows[:, None] + across
        is_inside = (window >= self.begin[:, None]) & (window < self.end[:, None])
        return window.where(is_inside, len(self.rows))


def _regions(num_blocks: int, window: int, num_global: int, device: torch.device) -> _Regions:
    rows = torch.arange(num_blocks, device=device)
    num_global, reach = min(num_global, num_blocks), window // 2
    begin = rows - reach if window > 0 else rows + 1
    bounds = [x.clamp(num_global, num_blocks) for x in (begin, rows + reach + 1)]
    return _Regions(rows, num_global, reach, *bounds)


def _draw(regions: _Regions, count: int, num_heads: int, seed: Tensor, *, causal: bool) -> Tensor:
    """Draw `count` blocks outside the regions: [heads, blocks, count], where blocks means none.

    Step t draws one of the first `free - count + t + 1` free blocks; if that one is taken, it
    takes the last of them instead, which no earlier step could reach.
    """
    num_blocks = len(regions.rows)
    before = regions.begin - regions.num_global
    free = before if causal else before + num_blocks - regions.end
    heads = torch.arange(num_heads, device=seed.device)[:, None]
    row_code = scramble(scramble(scramble(seed) ^ heads) ^ regions.rows)
    chosen = row_code.new_full((num_heads, num_blocks, count), -1)
    for step in range(count):
        last = free - count + step
        pick = (scramble(row_code ^ step) * (last + 1).clamp(min=0)) >> 32
        is_taken = (chosen == pick[..., None]).any(-1)
        chosen[..., step] = torch.where(last < 0, -1, torch.where(is_taken, last, pick))
    block = torch.where(
        chosen < before[:, None],
        chosen + regions.num_global,
        chosen - before[:, None] + regions.end[:, None],
    )
    return block.where(chosen >= 0, num_blocks)


def _entries(seen: Tensor, num_full_rows: int) -> tuple[Tensor, Tensor]:
    """Join rows that list every block with the rest of `seen`, [heads, blocks, most].

    Returns starts int64 [heads, blocks + 1] and entries [heads, count], for `compact`.
    """
    num_heads, num_blocks, most = seen.shape
    rows = torch.arange(num_blocks + 1, device=seen.device)
    every = rows[:num_blocks].repeat(num_heads, num_full_rows)
    entries = torch.cat([every, seen[:, num_full_rows:].flatten(1)], 1)
    starts = rows.clamp(max=num_full_rows) * num_blocks
    starts = starts + (rows - num_full_rows).clamp(min=0) * most
    heads = torch.arange(num_heads, device=seen.device)[:, None] * entries.shape[1]
    return starts + heads, entries
