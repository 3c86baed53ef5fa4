"""`ContinualMultiheadAttention`: torch's multi-head attention over a sliding window, step by step.

What a subclass adds is which of the window's queries have an output.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from attn_continual._layout import SequenceLayout, step_rows
from attn_continual._projections import (
    check_causal_hint,
    check_sequences,
    copy_weights,
    project,
    torch_attention,
    torch_padding,
    torch_settings,
)
from attn_continual.continual_module import ContinualModule
from attn_continual.window_attention import ExtraRows, Rows, Window, WindowState
from attn_ops.scalars import check_probability

if TYPE_CHECKING:
    from typing_extensions import Self


class ContinualMultiheadAttention(ContinualModule, nn.MultiheadAttention):
    """Attend within the last `sequence_len` steps with the parameters of torch's layer.

    A subclass defines `window`, `attend` and how its outputs are laid out.
    """

    inputs_without_time = ("attn_mask",)

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float,
        *torch_arguments: Any,  # noqa: ANN401  the others of torch's layer
        sequence_len: int | None,
        forward_returns_attn_mask: bool,
        embed_dim_second: bool,
    ) -> None:
        who = type(self).__name__
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads != 0:
            raise ValueError(
                f"{who}: expected embed_dim, a multiple of num_heads, got embed_dim={embed_dim} "
                f"and num_heads={num_heads}"
            )
        check_probability(who, "dropout", dropout)
        if not isinstance(sequence_len, int) or sequence_len < 1:
            raise ValueError(
                f"{who}: expected sequence_len, the steps of the window, got {sequence_len}"
            )
        super().__init__(embed_dim, num_heads, dropout, *torch_arguments)
        self.sequence_len = sequence_len
        self.forward_returns_attn_mask = forward_returns_attn_mask
        self.embed_dim_second = embed_dim_second
        self.receptive_field = sequence_len
        self.layout = SequenceLayout(self.batch_first, embed_dim_second)
        self.time_axis = self.layout.time_axis

    @classmethod
    def build_from(
        cls,
        mha: nn.MultiheadAttention,
        sequence_len: int,
        **options: Any,  # noqa: ANN401  arguments of the constructor
    ) -> Self:
        """Return a layer with the weights, mode and settings of torch's, which it does not share.

        options: what else the constructor takes.
        """
        built = cls(**{**torch_settings(mha), "sequence_len": sequence_len, **options})
        copy_weights(mha, built)
        return built.train(mha.training)

    def to_torch(self) -> nn.MultiheadAttention:
        """Return torch's layer with this one's weights, mode and settings, which it does not share.

        Torch's layer takes no features before time: `embed_dim_second` is not kept.
        """
        built = nn.MultiheadAttention(**torch_settings(self))
        copy_weights(self, built)
        return built.train(self.training)

    @property
    @abstractmethod
    def window(self) -> Window:
        """What attends to what at a step."""

    @abstractmethod
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
        """Return the outputs [N, T, ..., H, K] of T steps, the new state, and valid, bool [N, T].

        single: whether T is 1, for which there may be a shorter way.
        """

    def initial_state(
        self,
        num_streams: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> WindowState:
        """Return the state of streams that have seen nothing."""
        weight = self.out_proj.weight
        return self.window.initial_state(
            num_streams,
            self.num_heads,
            self.head_dim,
            self.head_dim,
            device=weight.device if device is None else device,
            dtype=weight.dtype if dtype is None else dtype,
        )

    def step(
        self,
        x: Tensor,
        state: WindowState,
        *,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, WindowState, Tensor]:
        """Return the output of the next step, the new state, and valid, bool [N].

        x, key, value: the step's query [N, E], key [N, kdim] (default: query) and value [N, vdim]
            (default: key).
        key_padding_mask: bool [N], True hides this step's key from every query.
        attn_mask: as torch's for the window, [L, L] or [N * num_heads, L, L].
        """
        out, state, valid = self.run_rows(
            step_rows(x),
            None if key is None else step_rows(key),
            None if value is None else step_rows(value),
            state,
            torch_padding(key_padding_mask, single=True),
            attn_mask,
            single=True,
            active=active,
            in_place=in_place,
        )
        return self.layout.from_step(out), state, valid.select(1, 0)

    def steps(
        self,
        x: Tensor,
        state: WindowState,
        *,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, WindowState, Tensor]:
        """Return the outputs of the next T steps, the new state, and valid, bool [N, T].

        x, key, value: in the layout of sequences. key_padding_mask: bool [N, T]. The rest as for
        `step`.
        """
        to_rows = self.layout.to_rows
        out, state, valid = self.run_rows(
            to_rows(x),
            None if key is None else to_rows(key),
            None if value is None else to_rows(value),
            state,
            torch_padding(key_padding_mask),
            attn_mask,
            active=active,
            in_place=in_place,
        )
        return self.layout.from_chunk(out), state, valid

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
        """Do what `steps` does with rows [N, T, E], whatever the layout of sequences.

        single: whether T is 1, for which there may be a shorter way.
        """
        rows = Rows(*project(self, query, query if key is None else key, value), key_padding_mask)
        out, state, valid = self.attend(
            rows, state, attn_mask, single=single, active=active, in_place=in_place
        )
        out = out.flatten(-2).to(rows.query.dtype)  # a state may be of another one
        out = linear(out, self.out_proj.weight, self.out_proj.bias)
        return out, state, valid

    def forward_step(  # pyright: ignore[reportIncompatibleMethodOverride]  the original's order
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
        return super().forward_step(
            query,
            update_state,
            key=key,
            value=value,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
        )

    def forward_steps(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        update_state: bool = True,
        pad_end: bool = False,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor | None:
        """Return the outputs of the next steps that have one, or None; see `steps`."""
        return super().forward_steps(
            query,
            pad_end,
            update_state,
            key=key,
            value=value,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
        )

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  weights may be left out
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """Return the output over the whole sequence and the weights, as torch's layer does.

        Without a window: every query sees all T keys that the masks leave. Masks as for torch,
        which gives NaN to a query that sees no key where weights are wanted.
        Returns (output, weights or None), or the output alone if `forward_returns_attn_mask` is
        off.
        """
        key = query if key is None else key
        value = key if value is None else value
        check_causal_hint(attn_mask, is_causal)
        rows = [self.layout.to_rows(x) for x in (query, key, value)]
        check_sequences(self, rows, attn_mask)
        at = self.queries_of_forward(rows[0].shape[1])
        out, weights = torch_attention(
            self,
            rows[0][:, at],
            *rows[1:],
            key_padding_mask=key_padding_mask,
            need_weights=need_weights and self.forward_returns_attn_mask,
            attn_mask=None if attn_mask is None else attn_mask[..., at, :],
            average_attn_weights=average_attn_weights,
            is_causal=is_causal and at == slice(None),
        )
        out = self.layout.from_rows(out)
        return (out, weights) if self.forward_returns_attn_mask else out

    def queries_of_forward(self, length: int) -> slice:
        """Return which of a sequence's queries have an output in `forward`: here all."""
        del length
        return slice(None)

    def extra_rows(self) -> ExtraRows | None:
        """Return the learned and the zero rows that every query sees, if there are any."""
        if self.bias_k is None and not self.add_zero_attn:
            return None
        shape = (1, self.num_heads, self.head_dim)
        zeros = [self.out_proj.weight.new_zeros(shape)] if self.add_zero_attn else []
        if self.bias_k is None or self.bias_v is None:
            return ExtraRows(*zeros, *zeros)
        key, value = (torch.cat([x.view(shape), *zeros]) for x in (self.bias_k, self.bias_v))
        return ExtraRows(key, value)

    def _after_the_end(
        self, x: Tensor, inputs: dict[str, Tensor | None]
    ) -> tuple[Tensor, dict[str, Tensor | None]]:
        """Return zeros for query, key and value; the mask of the window goes on."""
        zeros, after = super()._after_the_end(x, inputs)
        for name in ("key", "value"):
            given = inputs.get(name)
            after[name] = None if given is None else self._zeros_after(given)
        return zeros, after
