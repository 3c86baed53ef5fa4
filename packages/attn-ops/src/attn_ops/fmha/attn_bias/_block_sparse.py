"""A mask of blocks: which blocks of keys each block of queries sees, as lists."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attn_ops.fmha.attn_bias import _bands
from attn_ops.fmha.attn_bias._base import AttentionBias
from attn_ops.fmha.attn_bias._integers import check_size
from attn_ops.mask import Blocks, MaskSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class BlockSparseMask(AttentionBias):
    """Let the queries of block r see the keys of the blocks that its list names.

    Block r holds the queries [r * block_size, (r + 1) * block_size), and likewise for keys; the
    last blocks may be incomplete. Blocks that are not listed cost nothing, and nothing of the size
    of queries times keys is made. Lists in compressed sparse rows: those of row r are
    indices[offsets[h, r] : offsets[h, r + 1]], ascending.

    >>> pattern = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]], dtype=torch.bool)
    >>> mask = BlockSparseMask.from_pattern(pattern, block_size=64)
    >>> mask.offsets, mask.indices
    (tensor([[0, 1, 3, 5]], dtype=torch.int32), tensor([0, 0, 1, 1, 2], dtype=torch.int32))

    Raises: ValueError if the tensors are not int32, of these shapes, or `block_size` is less than
    1; TypeError if that is no int. What `offsets` and `indices` hold is checked where a constructor
    makes them.
    """

    offsets: Tensor
    """int32 [1 or Hq, query blocks + 1]: where each row's list begins and ends."""
    indices: Tensor
    """int32 [count]: key blocks, ascending within each list."""
    block_size: int
    """Queries and keys per block."""
    causal: bool = False
    """Whether query i sees keys j <= i alone."""

    def __post_init__(self) -> None:
        for name, tensor, axes in (("offsets", self.offsets, 2), ("indices", self.indices, 1)):
            if tensor.dtype != torch.int32 or tensor.dim() != axes:
                layout = "[1 or Hq, query blocks + 1]" if axes == 2 else "[count]"
                raise ValueError(
                    f"BlockSparseMask: expected {name}, an int32 tensor {layout}, got "
                    f"{tensor.dtype} {list(tensor.shape)}"
                )
        check_size("BlockSparseMask", "block_size", self.block_size)

    @classmethod
    def from_pattern(
        cls, pattern: Tensor, block_size: int, *, causal: bool = False
    ) -> BlockSparseMask:
        """Make a mask of the true entries of `pattern`, on its device.

        pattern: bool [query blocks, key blocks], or [Hq, query blocks, key blocks] with heads of
            their own.
        Raises: ValueError if `pattern` is another tensor; TypeError if it is none.
        """
        if not isinstance(pattern, Tensor):
            raise TypeError(
                f"BlockSparseMask.from_pattern: expected a bool tensor, got {type(pattern)}; pass "
                "torch.tensor(pattern, dtype=torch.bool)"
            )
        if pattern.dtype != torch.bool or pattern.dim() not in (2, 3):
            raise ValueError(
                "BlockSparseMask.from_pattern: expected a bool tensor [query blocks, key blocks] "
                f"or [Hq, query blocks, key blocks], got {pattern.dtype} {list(pattern.shape)}"
            )
        by_head = pattern if pattern.dim() == 3 else pattern.unsqueeze(0)
        heads, rows, _ = by_head.shape
        ends = by_head.sum(dim=2).reshape(-1).cumsum(0).reshape(heads, rows)
        firsts = (
            torch.cat([ends.new_zeros(1), ends[:-1, -1]]) if rows > 0 else ends.new_zeros(heads)
        )
        offsets = torch.cat([firsts.unsqueeze(1), ends], dim=1).to(torch.int32)
        indices = by_head.nonzero()[:, 2].to(torch.int32)
        return cls(offsets, indices, block_size, causal)

    @classmethod
    def from_lists(
        cls,
        lists: Sequence[Sequence[int]],
        block_size: int,
        *,
        causal: bool = False,
        device: torch.device | str | None = None,
    ) -> BlockSparseMask:
        """Make a mask, the same for every head, of the key blocks that each query block sees.

        lists: lists[r] names the key blocks that query block r sees, in any order.
        Raises: ValueError if a list names a block twice, one below 0, or one that does not fit
            int32; TypeError if it is no int.

        >>> BlockSparseMask.from_lists([[0], [1, 0]], block_size=2).materialize((3, 4)).exp()
        tensor([[1., 1., 0., 0.],
                [1., 1., 0., 0.],
                [1., 1., 1., 1.]])
        """
        for row, blocks in enumerate(lists):
            if not all(hasattr(block, "__index__") for block in blocks):
                raise TypeError(
                    "BlockSparseMask.from_lists: expected ints as blocks, got "
                    f"{list(blocks)} for block {row}"
                )
            is_outside = min(blocks, default=0) < 0 or max(blocks, default=0) >= 2**31
            if len(set(blocks)) != len(blocks) or is_outside:
                raise ValueError(
                    "BlockSparseMask.from_lists: expected different blocks of 0 or more and below "
                    f"2**31, got {list(blocks)} for block {row}"
                )
        offsets = [[0, *accumulate(len(blocks) for blocks in lists)]]
        indices = [block for blocks in lists for block in sorted(blocks)]
        return cls(
            torch.tensor(offsets, dtype=torch.int32, device=device),
            torch.tensor(indices, dtype=torch.int32, device=device),
            block_size,
            causal,
        )

    @classmethod
    def local_and_global(
        cls,
        num_blocks: int,
        block_size: int,
        *,
        local_blocks: int = 1,
        global_blocks: int = 0,
        random_blocks: int = 0,
        heads: int = 1,
        causal: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> BlockSparseMask:
        """Make the pattern of Longformer and BigBird.

        num_blocks: of queries, and as many of keys.
        local_blocks: how many blocks each block sees on either side, besides its own.
        global_blocks: so many first blocks see all blocks, and all blocks see them.
        random_blocks: how many blocks, any of them, each block of each head sees besides.
        heads: Hq, so that `random_blocks` differ from head to head; 1 shares one pattern.
        causal: leave out the blocks after the diagonal, and let query i see keys j <= i alone.
        generator: draws the random blocks; default: torch's own.
        Raises: TypeError if a number is no int; ValueError if one is negative, or `block_size` or
            `heads` 0.
        Source: Beltagy et al. 2020, arXiv:2004.05150; Zaheer et al. 2020, arXiv:2007.14062.
        """
        for name, count, least in (
            ("num_blocks", num_blocks, 0),
            ("local_blocks", local_blocks, 0),
            ("global_blocks", global_blocks, 0),
            ("random_blocks", random_blocks, 0),
            ("heads", heads, 1),
        ):
            check_size("BlockSparseMask.local_and_global", name, count, least)
        blocks = torch.arange(num_blocks)
        apart = (blocks[:, None] - blocks).abs()
        pattern = (apart <= local_blocks) | (blocks < global_blocks)
        pattern = (pattern | (blocks[:, None] < global_blocks)).repeat(heads, 1, 1)
        if random_blocks > 0:
            draws = torch.rand(pattern.shape, generator=generator)
            if causal:
                draws = draws.triu(1).neg() + draws.tril()
            chosen = draws.argsort(dim=2, descending=True)[:, :, :random_blocks]
            pattern.scatter_(2, chosen, value=True)
        if causal:
            pattern = pattern.tril()
        return cls.from_pattern(pattern, block_size, causal=causal).to(device or "cpu")

    def to(self, device: torch.device | str) -> Self:
        """Return the same lists on `device`."""
        return replace(self, offsets=self.offsets.to(device), indices=self.indices.to(device))

    @property
    def density(self) -> float:
        """The listed part of the blocks, if there are as many blocks of keys as of queries."""
        heads, rows = self.offsets.shape[0], self.offsets.shape[1] - 1
        return self.indices.shape[0] / max(heads * rows * rows, 1)

    def mask_spec(self) -> MaskSpec:
        """Return the parts that kernels evaluate."""
        band = _bands.CAUSAL if self.causal else _bands.EVERY_KEY
        return MaskSpec(band, blocks=Blocks(self.offsets, self.indices, self.block_size))

    def check_fits(self, num_queries: int, num_keys: int) -> None:
        """Check that there are as many blocks of queries as lists; keys the core alone compares.

        Raises: ValueError if there are others.
        """
        del num_keys
        if torch.compiler.is_compiling():
            return  # the length would be a guard
        blocks, size = self.offsets.shape[1] - 1, self.block_size
        if -(-num_queries // size) != blocks:
            raise ValueError(
                f"memory_efficient_attention: expected query with {blocks * size} rows, {blocks} "
                f"blocks of {size} of which the last may be incomplete, for this BlockSparseMask, "
                f"got {num_queries}; make the mask for {-(-num_queries // size)} blocks of queries"
            )

    def natural_shape(self) -> tuple[int, int]:
        """Return the Mq and Mkv it is made for."""
        last = int(self.indices.max()) + 1 if len(self.indices) > 0 else 0
        rows = self.offsets.shape[1] - 1
        return rows * self.block_size, max(rows, last) * self.block_size
