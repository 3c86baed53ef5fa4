"""`KernelAttention`, the base of attention whose weights are products of features."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from attn_modules._features.call import FeatureCall, quotient
from attn_modules._features.operators import feature_attention
from attn_modules._features.prefix_sums import PrefixState, absorb, state_before
from attn_modules._inputs import read_inputs
from attn_modules.attention import Attention

if TYPE_CHECKING:
    from torch import Tensor

    from attn_modules._features.arithmetic import Kind
    from attn_modules._inputs import Inputs
    from attn_modules.attention_mask import AttentionMask


class Kernel(NamedTuple):
    """A feature map and what it is of."""

    kind: Kind
    projection: Tensor | None
    """[K, m or m / 2], or None for a kind that needs none."""
    scale: float
    """What queries and keys are multiplied by first."""


class KernelAttention(Attention):
    """Weigh value j for query i by phi(q_i) . phi(k_j), and divide by the sum of the weights."""

    supports_head_dimension = True
    supports_attention_mask = False
    supports_key_padding_mask = True

    def __init__(self, dropout: float = 0.0, causal: bool = False) -> None:
        super().__init__(dropout)
        self.causal = causal

    @abstractmethod
    def _kernel(self, dim_head: int, *, counted: bool) -> Kernel:
        """Return the kernel for heads of K; `counted` if this is a call of `forward`."""

    def _prepare(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Return the queries [B, Mq, H, K] and the keys [B, Mkv, H, K] that features are of."""
        return inputs.q, inputs.k

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        att_mask: Tensor | AttentionMask | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the attended values; see `Attention.forward`. Takes no `att_mask`."""
        inputs = read_inputs(self, q, k, v, att_mask, key_padding_mask)
        kernel = self._kernel(q.shape[-1], counted=True)
        out, _ = self._attend(inputs, kernel)
        return functional.dropout(inputs.restore(out), self.dropout, self.training)

    def prefill(
        self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None
    ) -> tuple[Tensor, PrefixState]:
        """Return the results without dropout, and the state to go on with by `step`.

        Shapes: as `forward`, with as many keys as queries. Gradients do not reach the state.
        Raises: ValueError if the attention is not causal, or shapes do not fit.
        """
        self._check_causal("prefill")
        inputs = read_inputs(self, q, k, v, None, key_padding_mask)
        if q.shape[-2] != k.shape[-2]:
            raise ValueError(
                f"{type(self).__name__}.prefill: expected as many keys as queries, got "
                f"{k.shape[-2]} keys and {q.shape[-2]} queries"
            )
        out, state = self._attend(inputs, self._kernel(q.shape[-1], counted=False))
        return inputs.restore(out), state

    def step(
        self, q: Tensor, k: Tensor, v: Tensor, state: PrefixState | None = None
    ) -> tuple[Tensor, PrefixState]:
        """Return the result of one more position, without dropout, and the next state.

        Shapes: q, k [B, H, 1, K] or [B * H, 1, K]; v [..., 1, Kv]; the result as `v`.
        state: what the position before returned; None for the first. It is tensors alone, of a size
            that does not depend on the position, and is not written to.
        Raises: ValueError if the attention is not causal, or there is not one position.
        """
        self._check_causal("step")
        inputs = read_inputs(self, q, k, v)
        if q.shape[-2] != 1 or k.shape[-2] != 1:
            raise ValueError(
                f"{type(self).__name__}.step: expected one position, got {q.shape[-2]} queries "
                f"and {k.shape[-2]} keys; use prefill for more"
            )
        queries, keys = self._prepare(inputs)
        kernel = self._kernel(q.shape[-1], counted=False)
        call = FeatureCall(queries, keys, inputs.v, None, **kernel._asdict())
        before = state_before(call.empty_sums()) if state is None else state
        after = absorb(before, call.keys(slice(0, 1)))
        sums = call.queries(slice(0, 1)).phi @ after.sums.mT
        out = quotient(sums).to(q.dtype)
        return out.view(*q.shape[:-1], v.shape[-1]), after

    def _attend(self, inputs: Inputs, kernel: Kernel) -> tuple[Tensor, PrefixState]:
        q, k = self._prepare(inputs)
        v, keep = inputs.v, inputs.kept_rows()
        if self.causal and q.shape[1] != k.shape[1]:
            k, v, keep = _as_many_keys(q.shape[1], k, v, keep)
        result = feature_attention(q, k, v, keep, **kernel._asdict(), causal=self.causal)
        return result.out, PrefixState(result.sums, result.log_scale)

    def _check_causal(self, method: str) -> None:
        if not self.causal:
            raise ValueError(
                f"{type(self).__name__}.{method}: expected causal=True; without it, a result "
                "depends on all keys, the later ones too"
            )


def _as_many_keys(
    rows: int, k: Tensor, v: Tensor, keep: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the first `rows` keys, values and what is kept of them, with padding after too few."""
    missing = rows - k.shape[1]
    if missing <= 0:
        return k[:, :rows], v[:, :rows], None if keep is None else keep[:, :rows]
    if keep is None:
        keep = k.new_ones(1, k.shape[1], 1, 1, dtype=torch.bool)
    below = (0, 0, 0, 0, 0, missing)
    return functional.pad(k, below), functional.pad(v, below), functional.pad(keep, below)
