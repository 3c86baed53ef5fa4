"""Random attention: each query sees keys that are drawn for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from attn_modules.mechanisms._block_attention import BlockAttention
from attn_modules.patterns._bernoulli import bernoulli_block_mask
from attn_modules.patterns._block_lists import num_blocks
from attn_modules.registry import register_attention
from attn_ops.fmha.attn_bias import BlockSparseMask
from attn_ops.scalars import check_counts

if TYPE_CHECKING:
    from torch import Tensor


class _Drawn(NamedTuple):
    """A mask, and what it was drawn for."""

    mask: BlockSparseMask
    num_queries: int
    seed_version: int
    """How often the seed had been written to."""
    seed: Tensor


@register_attention("random")
class RandomAttention(BlockAttention):
    """Compute softmax(q k^T / sqrt(K)) v, where query i sees key j with probability r, exactly.

    Keys are drawn for each query by itself, and are the same for all batch elements and heads.
    The diagonal is drawn like the rest; a query for which none is drawn gives 0. What is drawn for
    query i and key j does not depend on M: shorter inputs crop the pattern, longer ones extend it.

    Use: the default r is for thousands of rows. (1 - r)^M of the queries see no key, and give 0:
        half of them where r = 0.01 and M = 69.

    Shapes: as `Attention`, Mq = Mkv = M.
    Cost: for blocks of b = `block_size`, 32 or more, time O(r M^2 K); memory beyond inputs and
        outputs O(M + r M^2 / b^2), which the constant pattern of the last length keeps.
    causal: of the keys that are drawn, query i sees j <= i alone.
    r: the probability in (0, 1]; 1 is dense attention.
    constant_masking: False draws a new pattern at each call in training, by torch's generator, so
        that checkpointing repeats it; evaluation has the constant one.
    force_sparsity: changes nothing, for what is not drawn is never computed.
    block_size: draw blocks of so many queries and keys. 1 is what xFormers means, and takes as long
        as dense attention even if r = 0.01. Blocks of b = 32 take a twentieth of that for M = 4096,
        but then 28 % of the queries see no key: (1 - r)^(M / b).
    seed: 0 to 2^32 - 1, decides the pattern; default: one drawn by torch's generator. It is a
        buffer, so that a checkpoint brings its pattern along.
    Raises: ValueError if `r`, `block_size` or `seed` is out of its range.
    Source: Zaheer et al. 2020, arXiv:2007.14062, section 2.
    """

    requires_same_k_q_dimensions = True
    num_patterns = 1

    seed: Tensor

    def __init__(
        self,
        dropout: float,
        causal: bool = False,
        r: float = 0.01,
        constant_masking: bool = True,
        force_sparsity: bool = False,
        *,
        block_size: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__(dropout)
        if not 0.0 < r <= 1.0:
            raise ValueError(f"RandomAttention: expected r, a probability in (0, 1], got {r}")
        check_counts("RandomAttention", block_size=block_size)
        if seed is not None and not 0 <= seed < 2**32:
            raise ValueError(f"RandomAttention: expected a seed of 0 to 2^32 - 1, got {seed}")
        self.causal = causal
        self.r = r
        self.constant_masking = constant_masking
        self.force_sparsity = force_sparsity
        self.block_size = block_size
        drawn = torch.randint(2**32, ()) if seed is None else torch.tensor(seed)
        self.register_buffer("seed", drawn)
        self._drawn: _Drawn | None = None

    def block_mask(self, num_queries: int, num_keys: int) -> BlockSparseMask:
        """Return the mask for `num_queries` queries and as many keys."""
        del num_keys  # as many
        if self.r == 1.0:
            offsets, indices = self.seed.new_tensor([[0, 1]]).int(), self.seed.new_zeros(1).int()
            rows = min(num_queries, 1)
            return BlockSparseMask(
                offsets[:, : rows + 1], indices[:rows], max(num_queries, 1), self.causal
            )
        if self.training and not self.constant_masking:
            return self._draw(num_queries, torch.randint_like(self.seed, 2**32))
        # A graph would take a mask that is kept for a constant, whatever its seed is given later.
        is_traced = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        if is_traced or torch.compiler.is_compiling() or self.seed.is_inference():
            return self._draw(num_queries, self.seed)
        return self._constant_mask(num_queries)

    def _constant_mask(self, num_queries: int) -> BlockSparseMask:
        """Return the mask of the call before, if it is for as many queries and the same seed."""
        kept, seed = self._drawn, self.seed
        version = seed._version  # noqa: SLF001  torch offers no public way
        if kept is None or kept.seed is not seed or kept[1:3] != (num_queries, version):
            # What is made in inference mode could not be trained with afterwards.
            with torch.inference_mode(False):
                kept = _Drawn(self._draw(num_queries, seed), num_queries, version, seed)
            self._drawn = kept
        return kept.mask

    def _draw(self, num_queries: int, seed: Tensor) -> BlockSparseMask:
        blocks = num_blocks(num_queries, self.block_size)
        return bernoulli_block_mask(
            blocks, self.block_size, r=self.r, causal=self.causal, seed=seed
        )

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        return f"r={self.r}, block_size={self.block_size}, {super().extra_repr()}"
