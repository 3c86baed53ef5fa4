"""Multi-head attention that computes one output per step: that of one query of a sliding window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attn_continual._multihead_attention import ContinualMultiheadAttention
from attn_continual._projections import packed_weights, torch_mask_row
from attn_continual.window_attention import Rows, Window, WindowState
from attn_ops import multihead_attention_step_

if TYPE_CHECKING:
    from torch import Tensor

    from attn_continual._projections import PackedWeights


class SingleOutputMultiheadAttention(ContinualMultiheadAttention):
    """Attend from one query of the last `sequence_len` steps to all of them, at every step.

    Parameters, their names and layouts are those of `torch.nn.MultiheadAttention`, so that weights
    load both ways. Masks are torch's too: True, or -inf, hides a key.

    Shapes, for N streams, E = embed_dim, L = sequence_len, T steps:
        forward: x [N, T, E] ([T, N, E] without `batch_first`, [N, E, T] with `embed_dim_second`)
            to (output, weights): one query's, [N, 1, E] and [N, 1, T], in that layout; with
            `single_output_forward` off every query's, as torch's own.
        forward_step: x [N, E] to [N, E], or None until L steps were seen.
        forward_steps: x as for forward to the outputs of the steps from the L-th on, [N, T', E] in
            that layout, or None.
    Cost of a step: O(L E) for attention, O(E^2) for projections; nothing is moved.
    sequence_len: L, the window. forward takes sequences of any length, without a window.
    query_index: the query of the window whose output is computed; -1 is the newest, and -1 - d
        delays outputs by d steps.
    dropout: of attention weights, in training, in every mode.
    forward_returns_attn_mask: whether forward returns weights, averaged over heads, besides.
    embed_dim_second: features come before time; only with `batch_first`.
    Raises: ValueError if `sequence_len` is missing or no length, or `query_index` is outside of it.
    Source: Hedegaard et al. 2022, arXiv:2201.06268, section 3.3.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        sequence_len: int | None = None,
        query_index: int = -1,
        forward_returns_attn_mask: bool = True,
        embed_dim_second: bool = False,
        single_output_forward: bool = True,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            dropout,
            bias,
            add_bias_kv,
            add_zero_attn,
            kdim,
            vdim,
            batch_first,
            device,
            dtype,
            sequence_len=sequence_len,
            forward_returns_attn_mask=forward_returns_attn_mask,
            embed_dim_second=embed_dim_second,
        )
        length = self.sequence_len
        if not isinstance(query_index, int) or not -length <= query_index < length:
            raise ValueError(
                f"SingleOutputMultiheadAttention: expected query_index, an int in [{-length}, "
                f"{length}), got {query_index}"
            )
        self.query_index = query_index
        self.single_output_forward = single_output_forward
        self.delay = -query_index - 1 if query_index < 0 else length - query_index - 1

    @property
    def window(self) -> Window:
        """What attends to what at a step."""
        dropout = self.dropout if self.training else 0.0
        return Window(self.sequence_len, self.delay, dropout=dropout)

    def attend(
        self,
        rows: Rows,
        state: WindowState,
        attn_mask: Tensor | None,
        *,
        single: bool,
        active: Tensor | None,
        in_place: bool,
    ) -> tuple[Tensor, WindowState, Tensor]:
        """Return the outputs [N, T, H, K] of T steps, the new state, and valid, bool [N, T].

        Of a mask of the window, the row of `query_index` counts.
        """
        run = self.window.step if single else self.window.steps
        return run(
            rows,
            state,
            mask_row=self._mask_row(attn_mask),
            extra=self.extra_rows(),
            active=active,
            in_place=in_place,
        )

    def forward_step(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        update_state: bool = True,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor | None:
        """Return the output of the next step, or None; see `step` for the arguments."""
        state, is_plain = self._state, key is value is key_padding_mask is attn_mask is None
        if is_plain and state is not None and self._may_overwrite(update_state):
            weights = self._native_weights(query, state)
            if weights is not None:
                out = self._step_natively(query, weights, state)
                self._count_step()
                return out if self._steps > self.warm_up_steps else None
        return super().forward_step(
            query,
            key,
            value,
            update_state,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
        )

    def run_rows(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        state: WindowState,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        *,
        single: bool = False,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, WindowState, Tensor]:
        """Do what `steps` does with rows [N, T, E], whatever the layout of sequences."""
        is_plain = key is value is key_padding_mask is attn_mask is active is None
        if single and in_place and is_plain:
            x = query.select(1, 0)
            weights = self._native_weights(x, state)
            if weights is not None:
                out = self._step_natively(x, weights, state)
                return out.unsqueeze(1), state, self.window.valid(state.position[:, None], None)
        return super().run_rows(
            query,
            key,
            value,
            state,
            key_padding_mask,
            attn_mask,
            single=single,
            active=active,
            in_place=in_place,
        )

    def _native_weights(self, x: Tensor, state: WindowState) -> PackedWeights | None:
        """Return the weights, if one call of attn_ops does all of a step in place from x [N, E]."""
        key = state.key
        if (
            (self.training and self.dropout > 0)
            or x.shape != (key.shape[0], self.embed_dim)
            or x.dtype != key.dtype
            or not x.is_cpu
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
        ):
            return None
        return packed_weights(self)

    def _step_natively(self, x: Tensor, weights: PackedWeights, state: WindowState) -> Tensor:
        """Write the step of x [N, E] into `state`, its position too; return the output [N, E]."""
        extra = self.extra_rows()
        return multihead_attention_step_(
            x.contiguous(),
            *weights,
            state.key,
            state.value,
            state.position,
            self.sequence_len,
            padding_ring=state.padding,
            extra_key=None if extra is None else extra.key,
            extra_value=None if extra is None else extra.value,
            query_ring=state.query if self.delay > 0 else None,
        )

    def queries_of_forward(self, length: int) -> slice:
        """Return which of a sequence's queries have an output in `forward`.

        Raises: ValueError if there is no query `query_index` among `length`.
        """
        if not self.single_output_forward:
            return slice(None)
        if not -length <= self.query_index < length:
            raise ValueError(
                f"SingleOutputMultiheadAttention: expected more than {length} steps, so that "
                f"there is a query {self.query_index}; or single_output_forward=False"
            )
        at = self.query_index % length
        return slice(at, at + 1)

    def _mask_row(self, attn_mask: Tensor | None) -> Tensor | None:
        if attn_mask is None:
            return None
        return torch_mask_row(attn_mask, self.query_index, self.sequence_len, self.num_heads)
