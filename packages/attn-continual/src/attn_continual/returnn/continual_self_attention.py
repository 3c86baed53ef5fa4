"""`ContinualSelfAttention`: the contract of continual modules for causal self-attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attn_continual._step_checks import check_rows
from attn_continual.continual_module import ContinualModule
from attn_continual.returnn.accumulation import Accumulated
from attn_continual.returnn.causal_self_attention import CausalSelfAttentionState

if TYPE_CHECKING:
    from attn_continual.returnn.causal_self_attention import CausalSelfAttention


class ContinualSelfAttention(ContinualModule):
    """Run a causal layer with a window in chunks and steps, with its state inside or outside.

    Every step has an output, the first ones from fewer keys than the window has.

    Shapes: x [N, T, in], of a step [N, in], to the same with out features.
    attention: the layer; it is held, not copied.
    Raises: ValueError if it has no window: its state would grow.

    >>> sizes = {"key_dim_total": 4, "value_dim_total": 4, "num_heads": 2}
    >>> attention = CausalSelfAttention(6, 5, **sizes, window=3)
    >>> ContinualSelfAttention(attention).forward_step(torch.randn(2, 6)).shape
    torch.Size([2, 5])
    """

    def __init__(self, attention: CausalSelfAttention) -> None:
        super().__init__()
        if attention.window is None:
            raise ValueError("ContinualSelfAttention: expected a layer with a window, got None")
        self.attention = attention
        self.receptive_field = attention.window

    @property
    def warm_up_steps(self) -> int:
        """None: every step has an output."""
        return 0

    def initial_state(
        self,
        num_streams: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> CausalSelfAttentionState:
        """Return the state of streams that have seen nothing."""
        return self.attention.default_initial_state(
            batch_dims=[num_streams], device=device, dtype=dtype
        )

    def step(
        self,
        x: Tensor,
        state: CausalSelfAttentionState,
        *,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, CausalSelfAttentionState, Tensor]:
        """Return the outputs [N, out] of the next step, the new state, and valid, bool [N]."""
        out, state, valid = self.steps(x[:, None], state, active=active, in_place=in_place)
        return out[:, 0], state, valid[:, 0]

    def steps(
        self,
        x: Tensor,
        state: CausalSelfAttentionState,
        *,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, CausalSelfAttentionState, Tensor]:
        """Return the outputs [N, T, out] of T steps, the new state, and valid, bool [N, T]."""
        who, features = type(self.attention).__name__, self.attention.in_dim.size
        if x.dim() != 3 or x.shape[2] != features:
            raise ValueError(
                f"{who}: expected [N, T, {features}], or without T for a step, got {list(x.shape)}"
            )
        check_rows(who, state.k_accum.shape[0], active, x=x)
        valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        lengths = None
        if active is not None:
            valid = valid & active[:, None]
            lengths = active * x.shape[1]
        out, held = self.attention.attend_after(x, Accumulated(*state), lengths, in_place=in_place)
        return out, CausalSelfAttentionState(*held), valid

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs [N, T, out] of whole sequences."""
        return self.attention(x)[0]
