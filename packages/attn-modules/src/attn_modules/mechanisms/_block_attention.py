"""`BlockAttention`: what exact attention over lists of blocks shares, whatever makes the lists."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from attn_modules._inputs import attend, read_inputs
from attn_modules.attention import Attention

if TYPE_CHECKING:
    from torch import Tensor

    from attn_modules.attention_mask import AttentionMask
    from attn_ops.fmha.attn_bias import BlockSparseMask


class BlockAttention(Attention):
    """Compute exact attention over the keys of the blocks that `block_mask` lists.

    Where heads have patterns of their own, their number tells folded ones apart.
    """

    supports_head_dimension = True
    supports_key_padding_mask = True

    num_patterns: int
    """As many as inputs have heads, or 1, which all heads share."""

    @abstractmethod
    def block_mask(self, num_queries: int, num_keys: int) -> BlockSparseMask:
        """Return the mask for inputs of these lengths.

        Raises: ValueError if there is none.
        """

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        att_mask: Tensor | AttentionMask | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the attended values; see `Attention.forward`."""
        by_head = self._with_heads(q), self._with_heads(k), self._with_heads(v)
        inputs = read_inputs(self, *by_head, att_mask, key_padding_mask)
        out = attend(
            inputs.q,
            inputs.k,
            inputs.v,
            pattern=self.block_mask(q.shape[-2], k.shape[-2]),
            bias=inputs.bias(),
            p=self.active_dropout,
        )
        restored = inputs.restore(out)
        return restored.flatten(0, 1) if restored.dim() > q.dim() else restored

    def _with_heads(self, x: Tensor) -> Tensor:
        """Return folded heads apart if each has its own pattern, and check how many there are."""
        heads, is_folded = self.num_patterns, x.dim() == 3
        if heads == 1:
            return x
        if x.shape[0] % heads != 0 if is_folded else x.shape[1] != heads:
            raise ValueError(
                f"{type(self).__name__}: expected {heads} heads, which have patterns of their own, "
                f"[B, {heads}, M, K] or folded [B * {heads}, M, K], got {list(x.shape)}"
            )
        return x.unflatten(0, (-1, heads)) if is_folded else x
