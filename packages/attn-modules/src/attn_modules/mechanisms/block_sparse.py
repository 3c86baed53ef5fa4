"""Attention over the blocks of a layout that the caller gives."""

from __future__ import annotations

from torch import Tensor

from attn_modules.mechanisms._block_attention import BlockAttention
from attn_modules.patterns import layouts
from attn_modules.registry import register_attention
from attn_ops.fmha.attn_bias import BlockSparseMask
from attn_ops.scalars import check_counts


@register_attention("blocksparse")
class BlockSparseAttention(BlockAttention):
    """Compute softmax(q k^T / sqrt(K)) v over the blocks of keys that a layout lets queries see.

    Shapes: as `Attention`, with Mq <= query blocks * block_size and Mkv <= key blocks *
        block_size; shorter inputs crop the layout. Where heads have layouts of their own, their
        number tells heads that are folded apart.
    Cost: for n listed blocks, time O(n block_size^2 K), memory beyond inputs and outputs O(Mq + n).
    layout: [H, query blocks, key blocks] or, for all heads, [1, …] or [query blocks, key blocks];
        what is not 0 lets the queries of a block see the keys of a block. It is kept as lists, the
        buffers `offsets` and `indices` of `attn_ops.fmha.attn_bias.BlockSparseMask`.
    block_size: queries and keys per block, 1 or more; 16 and more are quick.
    num_heads: how many heads there are; a layout for each of them says so itself.
    causal: besides, query i sees keys j <= i alone, counted from the first of each.
    Raises: ValueError if `layout` is another tensor, or not for `num_heads` heads, or a count is no
        int of 1 or more; TypeError if `layout` is no tensor.
    Source: Child et al. 2019, arXiv:1904.10509, section 5.
    """

    offsets: Tensor
    indices: Tensor

    def __init__(
        self,
        layout: Tensor,
        block_size: int = 16,
        dropout: float = 0.0,
        num_heads: int = 1,
        causal: bool = False,
    ) -> None:
        super().__init__(dropout)
        if not isinstance(layout, Tensor):
            raise TypeError(
                f"BlockSparseAttention: expected layout, a tensor, got a {type(layout).__name__}; "
                "attn_modules.patterns.mask_to_layout makes one of a BlockSparseMask, whose causal "
                "is to be given besides"
            )
        by_head = layout.unsqueeze(0) if layout.dim() == 2 else layout
        if by_head.dim() != 3 or by_head.shape[0] < 1:
            raise ValueError(
                "BlockSparseAttention: expected layout [H, query blocks, key blocks] or [query "
                f"blocks, key blocks], got {list(layout.shape)}"
            )
        check_counts("BlockSparseAttention", block_size=block_size, num_heads=num_heads)
        self.num_patterns, self._query_blocks, self._key_blocks = by_head.shape
        if self.num_patterns != 1 and num_heads not in (1, self.num_patterns):
            raise ValueError(
                f"BlockSparseAttention: expected a layout for num_heads={num_heads} heads, got "
                f"one for {self.num_patterns}"
            )
        mask = BlockSparseMask.from_pattern(by_head != 0, block_size, causal=causal)
        self.block_size = block_size
        self.causal = causal
        self.num_heads = max(num_heads, self.num_patterns)
        self.register_buffer("offsets", mask.offsets)
        self.register_buffer("indices", mask.indices)

    @property
    def layout(self) -> Tensor:
        """The layout, bool [H or 1, query blocks, key blocks]."""
        return layouts.mask_to_layout(self._whole_mask(), self._key_blocks)

    def block_mask(self, num_queries: int, num_keys: int) -> BlockSparseMask:
        """Return the layout's mask, cropped to inputs of these lengths.

        Raises: ValueError if they are longer than the layout.
        """
        most = self._query_blocks * self.block_size, self._key_blocks * self.block_size
        if num_queries > most[0] or num_keys > most[1]:
            raise ValueError(
                f"BlockSparseAttention: expected at most {most[0]} queries and {most[1]} keys, "
                f"as layout has blocks for, got {num_queries} and {num_keys}"
            )
        return layouts.crop_blocks(self._whole_mask(), num_queries, num_keys)

    def _whole_mask(self) -> BlockSparseMask:
        return BlockSparseMask(self.offsets, self.indices, self.block_size, self.causal)

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        blocks = f"[{self._query_blocks}, {self._key_blocks}]"
        return f"blocks={blocks}, block_size={self.block_size}, {super().extra_repr()}"
