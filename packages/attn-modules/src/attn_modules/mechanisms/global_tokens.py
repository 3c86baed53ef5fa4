"""Global attention: a few tokens see all others, and all others see them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attn_modules._inputs import Inputs, attend, read_inputs
from attn_modules.attention import Attention
from attn_modules.registry import register_attention

if TYPE_CHECKING:
    from attn_modules.attention_mask import AttentionMask


@register_attention("global")
class GlobalAttention(Attention):
    """Compute softmax(q k^T / sqrt(K)) v, where query i sees key j if i or j is global, exactly.

    A query that is not global sees the global keys alone: not itself, as in xFormers. It gives 0
    if there is none.

    Shapes: as `Attention`, Mq = Mkv = M of at most N.
    Cost: with g global tokens time O(g M K), memory beyond inputs and outputs O(M), and g M bits
        more if it is causal: two dense calls, g queries with M keys and M queries with g keys.
    attention_query_mask: bool [N, 1] or [N]: True is a global token. Shorter inputs take its first
        M. It belongs to the configuration: no state_dict holds it.
    causal: of those keys, query i sees j <= i alone.
    force_sparsity: changes nothing, for what is not seen is never computed.
    Raises: ValueError if `attention_query_mask` is another tensor, or inputs are longer than it;
        TypeError if it is none.
    Source: Beltagy et al. 2020, arXiv:2004.05150, section 3.1; Zaheer et al. 2020,
        arXiv:2007.14062, section 2.
    """

    supports_head_dimension = True
    supports_key_padding_mask = True
    requires_same_k_q_dimensions = True

    attention_query_mask: Tensor
    global_tokens: Tensor

    def __init__(
        self,
        dropout: float,
        attention_query_mask: Tensor,
        causal: bool = False,
        force_sparsity: bool = False,
    ) -> None:
        super().__init__(dropout)
        is_global = _check_query_mask(attention_query_mask)
        self.causal = causal
        self.force_sparsity = force_sparsity
        self.register_buffer("attention_query_mask", attention_query_mask, persistent=False)
        self.register_buffer("global_tokens", is_global.nonzero().squeeze(1), persistent=False)
        # Python numbers, so that the number of global tokens is known to compilers.
        self._globals_among_first = (0, *is_global.cumsum(0).tolist())

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        att_mask: Tensor | AttentionMask | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the attended values; see `Attention.forward`."""
        length = q.shape[-2]
        if length >= len(self._globals_among_first):
            raise ValueError(
                f"GlobalAttention: expected at most {len(self._globals_among_first) - 1} tokens, "
                f"as many as attention_query_mask has, got {length}"
            )
        inputs = read_inputs(self, q, k, v, att_mask, key_padding_mask)
        tokens = self.global_tokens[: self._globals_among_first[length]]
        from_globals = self._attend(_of_queries(inputs, tokens), tokens, None)
        from_all = self._attend(_of_keys(inputs, tokens), None, tokens)
        return inputs.restore(from_all.index_copy(1, tokens, from_globals))

    def _attend(self, part: Inputs, queries: Tensor | None, keys: Tensor | None) -> Tensor:
        """Attend from and to the tokens that `part` holds; None: they are all from the first on."""
        bias = part.bias()
        if self.causal:
            i, j = _places(part.q, queries), _places(part.k, keys)
            bias = _hide(bias, j <= i[:, None])
        return attend(part.q, part.k, part.v, pattern=None, bias=bias, p=self.active_dropout)

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        tokens = f"{len(self.global_tokens)} of {len(self._globals_among_first) - 1}"
        return f"global_tokens=({tokens}), {super().extra_repr()}"


def _check_query_mask(mask: Tensor) -> Tensor:
    """Return which tokens are global, bool [N]."""
    if not isinstance(mask, Tensor):
        raise TypeError(
            "GlobalAttention: expected attention_query_mask, a bool tensor [N, 1] or [N], got a "
            f"{type(mask).__name__}"
        )
    if mask.dtype != torch.bool or mask.dim() not in (1, 2) or mask.shape[1:].numel() != 1:
        raise ValueError(
            "GlobalAttention: expected attention_query_mask, bool [N, 1] or [N], got "
            f"{mask.dtype} {list(mask.shape)}"
        )
    return mask.reshape(-1)


def _of_queries(inputs: Inputs, tokens: Tensor) -> Inputs:
    mask = _select(inputs.mask, 2, tokens)
    return replace(inputs, q=inputs.q.index_select(1, tokens), mask=mask)


def _of_keys(inputs: Inputs, tokens: Tensor) -> Inputs:
    return replace(
        inputs,
        k=inputs.k.index_select(1, tokens),
        v=inputs.v.index_select(1, tokens),
        mask=_select(inputs.mask, 3, tokens),
        keep=_select(inputs.keep, 3, tokens),
    )


def _select(mask: Tensor | None, axis: int, tokens: Tensor) -> Tensor | None:
    """Return the mask of the tokens; one that is the same for all of them stays as it is."""
    return mask if mask is None or mask.shape[axis] == 1 else mask.index_select(axis, tokens)


def _places(rows: Tensor, tokens: Tensor | None) -> Tensor:
    """Return where the rows of [B, M, H, K] lie in the sequence."""
    return torch.arange(rows.shape[1], device=rows.device) if tokens is None else tokens


def _hide(bias: Tensor | None, seen: Tensor) -> Tensor:
    """Return `bias` without the keys that are not seen, [Mq, Mkv]."""
    if bias is None:
        return seen[None, None]
    return bias & seen if bias.dtype == torch.bool else bias.masked_fill(~seen, -torch.inf)
