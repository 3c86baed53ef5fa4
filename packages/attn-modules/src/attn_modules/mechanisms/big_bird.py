"""BigBird: attention over local, global and random blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attn_modules.mechanisms._block_attention import BlockAttention
from attn_modules.patterns import big_bird
from attn_modules.patterns._block_lists import num_blocks
from attn_modules.registry import register_attention
from attn_ops.scalars import check_counts

if TYPE_CHECKING:
    from torch import Tensor

    from attn_ops.fmha.attn_bias import BlockSparseMask


@register_attention("big_bird")
class BigBirdAttention(BlockAttention):
    """Compute softmax(q k^T / sqrt(K)) v over a window of blocks, global and random blocks.

    Each block of queries sees the window of blocks around its own, the first blocks, and blocks
    drawn among the others; the first blocks see everything, unless it is causal. With g, w and r
    of them, and blocks of b, a query sees (g + w + r) b keys.

    Use: with the defaults, eight blocks of 64, inputs of up to 512 rows are attended almost
        densely; choose a smaller `block_size` for those.

    Shapes: as `Attention`, Mq = Mkv = M of any value.
    Cost: time O(M (g + w + r) b K), memory beyond inputs and outputs O(M + H M / b (g + w + r)).
    causal: query i sees keys j <= i alone. Then what a query sees does not depend on M.
    block_size: queries and keys per block.
    num_random_blocks, num_sliding_window_blocks, num_global_blocks: r, w (odd, or 0) and g.
    num_heads: patterns that have random blocks of their own; 1 is one that all heads share. With
        more, it is also the number of heads of every input.
    seed: 0 to 2^32 - 1, decides what is drawn for any length; default: one drawn by torch's
        generator. It is a buffer, so that a checkpoint brings its pattern along. Layers are better
        off with seeds of their own.
    Raises: ValueError if a number is out of its range.
    Source: Zaheer et al. 2020, arXiv:2007.14062, sections 2 and 3.2 (the internal transformer
        construction), and appendix D for the blocks.
    """

    requires_same_k_q_dimensions = True

    seed: Tensor

    def __init__(
        self,
        dropout: float = 0.0,
        causal: bool = False,
        block_size: int = 64,
        num_random_blocks: int = 3,
        num_sliding_window_blocks: int = 3,
        num_global_blocks: int = 2,
        num_heads: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__(dropout)
        who = type(self).__name__
        big_bird.check_counts(
            num_random_blocks, num_sliding_window_blocks, num_global_blocks, num_heads, who
        )
        check_counts(who, block_size=block_size)
        if seed is not None and not 0 <= seed < 2**32:
            raise ValueError(f"{who}: expected a seed of 0 to 2^32 - 1, got {seed}")
        self.causal = causal
        self.block_size = block_size
        self.num_random_blocks = num_random_blocks
        self.num_sliding_window_blocks = num_sliding_window_blocks
        self.num_global_blocks = num_global_blocks
        self.num_heads = self.num_patterns = num_heads
        drawn = torch.randint(2**32, ()) if seed is None else torch.tensor(seed)
        self.register_buffer("seed", drawn)

    def block_mask(self, num_queries: int, num_keys: int) -> BlockSparseMask:
        """Return the mask for `num_queries` queries and as many keys."""
        del num_keys  # as many
        return big_bird.big_bird_block_mask(
            num_blocks(num_queries, self.block_size),
            self.block_size,
            num_random_blocks=self.num_random_blocks,
            num_sliding_window_blocks=self.num_sliding_window_blocks,
            num_global_blocks=self.num_global_blocks,
            num_heads=self.num_heads,
            causal=self.causal,
            seed=self.seed,
        )

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        blocks = (
            f"{self.num_random_blocks} random, {self.num_sliding_window_blocks} in the window, "
            f"{self.num_global_blocks} global"
        )
        return f"block_size={self.block_size}, blocks=({blocks}), {super().extra_repr()}"
