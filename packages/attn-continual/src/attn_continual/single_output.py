"""Multi-head attention that computes one output per step: that of one query of a sliding window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attn_continual._projections import (
    Projected,
    project,
    torch_attention,
    torch_mask_row,
    torch_padding,
)
from attn_continual.continual_module import ContinualModule
from attn_continual.window_attention import ExtraRows, Rows, Window, WindowState

if TYPE_CHECKING:
    from typing_extensions import Self


class SingleOutputMultiheadAttention(ContinualModule, nn.MultiheadAttention):
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
        _check_window(sequence_len, query_index)
        if embed_dim_second and not batch_first:
            raise ValueError(
                "SingleOutputMultiheadAttention: expected batch_first with embed_dim_second"
            )
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
        )
        self.sequence_len: int = sequence_len  # pyright: ignore[reportAttributeAccessIssue]  checked
        self.query_index = query_index
        self.forward_returns_attn_mask = forward_returns_attn_mask
        self.embed_dim_second = embed_dim_second
        self.single_output_forward = single_output_forward
        self.receptive_field = self.sequence_len
        self.delay = -query_index - 1 if query_index < 0 else self.sequence_len - query_index - 1
        self.time_axis = 2 if embed_dim_second else 1 if batch_first else 0

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
        weight = mha.out_proj.weight
        built = cls(
            mha.embed_dim,
            mha.num_heads,
            **{
                "dropout": mha.dropout,
                "bias": mha.in_proj_bias is not None,
                "add_bias_kv": mha.bias_k is not None,
                "add_zero_attn": mha.add_zero_attn,
                "kdim": mha.kdim,
                "vdim": mha.vdim,
                "batch_first": mha.batch_first,
                "device": weight.device,
                "dtype": weight.dtype,
                "sequence_len": sequence_len,
                **options,
            },
        )
        built.load_state_dict(mha.state_dict())
        return built.train(mha.training)

    @property
    def window(self) -> Window:
        """What attends to what at a step."""
        dropout = self.dropout if self.training else 0.0
        return Window(self.sequence_len, self.delay, dropout=dropout)

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
        """Return the output [N, E] of the next step, the new state, and valid, bool [N].

        x, key, value: the step's query [N, E], key [N, kdim] (default: query) and value [N, vdim]
            (default: key).
        key_padding_mask: bool [N], True hides this step's key from every query.
        attn_mask: as torch's for the window, [L, L] or [N * num_heads, L, L]; the row of
            `query_index` counts.
        """
        more = (None if t is None else _as_chunk(t) for t in (key, value))
        rows = self._rows(_as_chunk(x), *more)
        if key_padding_mask is not None:
            key_padding_mask = torch_padding(key_padding_mask)[:, None]
        out, state, valid = self.window.step(
            Rows(*rows, key_padding_mask),
            state,
            mask_row=self._mask_row(attn_mask),
            extra=self._extra_rows(),
            active=active,
            in_place=in_place,
        )
        return self.out_proj(out.flatten(2))[:, 0], state, valid[:, 0]

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
        """Return the outputs of the next T steps in the layout of `x`, and valid, bool [N, T].

        key_padding_mask: bool [N, T]. The rest as for `step`.
        """
        more = (None if t is None else self._to_rows(t) for t in (key, value))
        rows = self._rows(self._to_rows(x), *more)
        if key_padding_mask is not None:
            key_padding_mask = torch_padding(key_padding_mask)
        out, state, valid = self.window.steps(
            Rows(*rows, key_padding_mask),
            state,
            mask_row=self._mask_row(attn_mask),
            extra=self._extra_rows(),
            active=active,
            in_place=in_place,
        )
        return self._from_rows(self.out_proj(out.flatten(2))), state, valid

    def forward_step(  # pyright: ignore[reportIncompatibleMethodOverride]  the seed's order
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        update_state: bool = True,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor | None:
        """Return the output [N, E] of the next step, or None; see `step` for the arguments."""
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

        Without a window: every query sees all T keys that the masks leave. With
        `single_output_forward` only the output of `query_index` among T. Masks as for torch.
        Returns (output, weights or None), or the output alone if `forward_returns_attn_mask` is
        off.
        """
        key = query if key is None else key
        value = key if value is None else value
        rows = [self._to_rows(x) for x in (query, key, value)]
        if is_causal and attn_mask is None:
            raise ValueError(
                "SingleOutputMultiheadAttention: expected an attn_mask with is_causal, which says "
                "of it that it is causal, got None"
            )
        if self.single_output_forward:
            at = self._query_among(rows[0].shape[1])
            rows[0] = rows[0][:, at : at + 1]
            attn_mask = None if attn_mask is None else attn_mask[..., at : at + 1, :]
        out, weights = torch_attention(
            self,
            *rows,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights and self.forward_returns_attn_mask,
            attn_mask=attn_mask,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal and not self.single_output_forward,
        )
        out = self._from_rows(out)
        return (out, weights) if self.forward_returns_attn_mask else out

    def _after_the_end(
        self, x: Tensor, inputs: dict[str, Tensor | None]
    ) -> tuple[Tensor, dict[str, Tensor | None]]:
        """Return zeros for query, key and value; the mask of the window goes on."""
        after: dict[str, Tensor | None] = {"attn_mask": inputs["attn_mask"]}
        for name in ("key", "value"):
            given = inputs[name]
            after[name] = None if given is None else self._zeros_after(given)
        return self._zeros_after(x), after

    def _query_among(self, length: int) -> int:
        if not -length <= self.query_index < length:
            raise ValueError(
                f"SingleOutputMultiheadAttention: expected more than {length} steps, so that "
                f"there is a query {self.query_index}; or single_output_forward=False"
            )
        return self.query_index % length

    def _rows(
        self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None
    ) -> Projected:
        return project(self, query, query if key is None else key, value)

    def _extra_rows(self) -> ExtraRows | None:
        """Return the learned and the zero rows that every query sees, if there are any."""
        shape = (1, -1, self.num_heads, self.head_dim)
        key = [] if self.bias_k is None else [self.bias_k.view(shape)]
        value = [] if self.bias_v is None else [self.bias_v.view(shape)]
        if self.add_zero_attn:
            zeros = self.out_proj.weight.new_zeros(1, 1, self.num_heads, self.head_dim)
            key.append(zeros)
            value.append(zeros)
        return ExtraRows(torch.cat(key, dim=1), torch.cat(value, dim=1)) if key else None

    def _mask_row(self, attn_mask: Tensor | None) -> Tensor | None:
        if attn_mask is None:
            return None
        return torch_mask_row(attn_mask, self.query_index, self.sequence_len, self.num_heads)

    def _to_rows(self, x: Tensor) -> Tensor:
        """View a sequence in the caller's layout as [N, T, E]."""
        if x.dim() != 3:
            raise ValueError(
                "SingleOutputMultiheadAttention: expected a sequence of 3 axes, streams, time and "
                f"features, got {list(x.shape)}; unsqueeze a single stream"
            )
        if self.embed_dim_second:
            return x.transpose(1, 2)
        return x if self.batch_first else x.transpose(0, 1)

    def _from_rows(self, x: Tensor) -> Tensor:
        return self._to_rows(x)  # each of the layouts is its own inverse


def _as_chunk(x: Tensor) -> Tensor:
    """View a step's input [N, E] as [N, 1, E]."""
    if x.dim() != 2:
        raise ValueError(
            "SingleOutputMultiheadAttention: expected a step of 2 axes, streams and features, got "
            f"{list(x.shape)}; forward_steps takes sequences"
        )
    return x[:, None]


def _check_window(sequence_len: int | None, query_index: int) -> None:
    if sequence_len is None or sequence_len < 1:
        raise ValueError(
            "SingleOutputMultiheadAttention: expected sequence_len, the steps of the window, got "
            f"{sequence_len}"
        )
    if not -sequence_len <= query_index < sequence_len:
        raise ValueError(
            f"SingleOutputMultiheadAttention: expected query_index in [{-sequence_len}, "
            f"{sequence_len}), got {query_index}"
        )
