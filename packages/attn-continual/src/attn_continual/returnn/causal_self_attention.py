"""Causal self-attention over whole sequences, chunks and single steps, with its state outside."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import torch
from torch import Tensor

from attn_continual.returnn import tagged_calls
from attn_continual.returnn.accumulation import Accumulated
from attn_continual.returnn.dim import Dim, single_step_dim
from attn_continual.returnn.self_attention import SelfAttentionBase
from attn_continual.returnn.sequences import INTEGERS, Sequences, check_fits
from attn_continual.returnn.tagged_tensor import TaggedTensor
from attn_continual.streams import loadable

if TYPE_CHECKING:
    from collections.abc import Sequence


@loadable
class CausalSelfAttentionState(NamedTuple):
    """Keys and values of the steps seen. No call changes a state that it is given.

    `select_streams` chooses along the first batch axis, as a beam search does after each step; it
    wants batch and beam in one axis.
    Of tagged calls the fields are tagged tensors and a `Dim`, whose lengths are the steps seen
    where they differ. An empty one stands for the beginning.
    """

    k_accum: Any = None
    """[*batch, R, H, dk]: step p lies in slot p, or with a window of R in slot p % R."""
    v_accum: Any = None
    """[*batch, R, H, dv]"""
    accum_axis: Any = None
    """How many steps: an int, R, if every stream has seen as many; else int64 [*batch]."""


class CausalSelfAttention(SelfAttentionBase):
    """Attend from every place of a sequence to those up to it, in chunks of any lengths.

    The state grows with the steps seen, by a copy at each call; with a `window` it is a ring of
    fixed size.
    window: how many keys a query sees, its own and those before it; default: all.
    Source: Vaswani et al. 2017, arXiv:1706.03762. The rest: see `SelfAttentionBase`.

    >>> attention = CausalSelfAttention(7, 5, key_dim_total=6, value_dim_total=9, num_heads=3)
    >>> state = attention.default_initial_state(batch_dims=[2])
    >>> _, state = attention(torch.randn(2, 4, 7), axis=1, state=state)
    >>> out, state = attention(torch.randn(2, 7), axis=single_step_dim, state=state)
    >>> out.shape, state.accum_axis
    (torch.Size([2, 5]), 5)
    """

    def __init__(
        self,
        in_dim: int | Dim,
        proj_dim: int | Dim | None,
        *,
        key_dim_total: int | Dim,
        value_dim_total: int | Dim,
        num_heads: int | Dim,
        with_bias: bool = True,
        att_dropout: float = 0.1,
        att_dropout_broadcast: bool | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__(
            in_dim,
            proj_dim,
            key_dim_total=key_dim_total,
            value_dim_total=value_dim_total,
            num_heads=num_heads,
            with_bias=with_bias,
            att_dropout=att_dropout,
            att_dropout_broadcast=att_dropout_broadcast,
        )
        if window is not None and (not isinstance(window, int) or window < 1):
            raise ValueError(
                f"{type(self).__name__}: expected window, the keys that a query sees, of 1 or "
                f"more, or None, got {window}"
            )
        self.window = window

    @overload
    def __call__(
        self,
        source: TaggedTensor,
        axis: Dim,
        *,
        state: CausalSelfAttentionState | None = None,
    ) -> tuple[TaggedTensor, CausalSelfAttentionState]: ...

    @overload
    def __call__(
        self,
        source: Tensor,
        axis: int | Dim = -2,
        *,
        state: CausalSelfAttentionState | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, CausalSelfAttentionState]: ...

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call `forward`."""
        return super().__call__(*arguments, **named)

    def forward(
        self,
        source: Any,  # noqa: ANN401  of either kind
        axis: int | Dim = -2,
        *,
        state: CausalSelfAttentionState | None = None,
        lengths: Tensor | None = None,
    ) -> Any:  # noqa: ANN401
        """Return the results of the next steps, 0 where there is padding, and the new state.

        Shapes: source [*batch, T, in], with T at `axis`, to the same with out features; [*batch,
            in] to [*batch, out] for `single_step_dim`; lengths int [*batch]: of each stream only
            the first of the T steps are seen, the others leave no trace.
        source: or a tagged tensor, with `axis` a dim whose lengths count.
        state: None is the beginning; a single step needs one.
        Raises: ValueError if something does not fit, or the state of a single step is missing.
        """
        if isinstance(source, TaggedTensor):
            return tagged_calls.causal_self_attention(self, source, axis, state)
        is_step = axis is single_step_dim
        if is_step and state is None:
            raise ValueError(
                f"{type(self).__name__}: expected a state with single_step_dim, got None; begin "
                "with default_initial_state"
            )
        rows, time = (source.unsqueeze(-2), -2) if is_step else (source, axis)
        who, features = type(self).__name__, self.in_dim.size
        sequences = Sequences.read(who, rows, time, features, lengths)
        if lengths is not None:
            lengths = lengths.expand(sequences.batch).reshape(-1).to(torch.int64)
            lengths = lengths.clamp(0, sequences.rows.shape[1])
        held = self._accumulated(state, sequences.batch)
        out, held = self.attend_after(sequences.rows, held, lengths)
        out = sequences.restore(out)
        return out.squeeze(-2) if is_step else out, _state_of(held, sequences.batch)

    def default_initial_state(
        self,
        *,
        batch_dims: Sequence[int | Dim],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> CausalSelfAttentionState:
        """Return the state of streams that have seen nothing; default: as the parameters are.

        batch_dims: sizes; or dims, for tagged calls, of tensors that there are already.
        """
        batch = tuple(int(dim.size if isinstance(dim, Dim) else dim) for dim in batch_dims)
        weight = self.qkv.weight
        device = weight.device if device is None else device
        held = self._beginning(batch, device, weight.dtype if dtype is None else dtype)
        state = _state_of(held, batch)
        if any(isinstance(dim, Dim) for dim in batch_dims):
            return tagged_calls.tagged_state(self, state, batch_dims)
        return state

    def attend_after(
        self,
        source: Tensor,
        held: Accumulated | None,
        lengths: Tensor | None = None,
        *,
        in_place: bool = False,
    ) -> tuple[Tensor, Accumulated]:
        """Return the results [B, T, out] of the next steps [B, T, in], and what is held then.

        in_place: the memory of a ring may be overwritten.
        """
        query, key, value = self.forward_qkv(source)
        if held is None:
            batch = (source.shape[0],)
            held = self._beginning(batch, source.device, key.dtype)
            out = self.attend(query, key, value, is_causal=True, window=self.window)
            return self.project(out), self._append(held, key, value, lengths, in_place)
        dtype = query.dtype  # a state may be narrower than what is computed
        query, key, value = (x.to(held.key.dtype) for x in (query, key, value))
        if source.shape[1] == 1:
            held = self._append(held, key, value, lengths, in_place)
            ages, keep = held.ages()
            out = self.attend_newest(query, held.key, held.value, ages, keep)
            return self.project(out.to(dtype)), held
        history = held.history(held.key.shape[1] if self.window is None else self.window - 1)
        keep = history.is_there
        if keep is not None:
            keep = torch.cat([keep, keep.new_ones(key.shape[:2])], 1)
        out = self.attend(
            query,
            torch.cat([history.key, key], 1),
            torch.cat([history.value, value], 1),
            keep=keep,
            is_causal=True,
            window=self.window,
        )
        return self.project(out.to(dtype)), self._append(held, key, value, lengths, in_place)

    def _append(
        self,
        held: Accumulated,
        key: Tensor,
        value: Tensor,
        lengths: Tensor | None,
        in_place: bool,
    ) -> Accumulated:
        if self.window is None:
            return held.appended(key, value, lengths)
        return held.written(key, value, lengths, in_place=in_place)

    def _beginning(
        self, batch: tuple[int, ...], device: torch.device | str, dtype: torch.dtype
    ) -> Accumulated:
        """Return what is held of streams [*batch] before their first step, batch axes flattened."""
        streams, slots = math.prod(batch), self.window or 0
        key, value = (
            torch.zeros(streams, slots, self.num_heads.size, dim.size, device=device, dtype=dtype)
            for dim in (self.key_dim_per_head, self.value_dim_per_head)
        )
        if self.window is None:
            return Accumulated(key, value, 0)
        return Accumulated(key, value, torch.zeros(streams, dtype=torch.int64, device=device))

    def _accumulated(
        self, state: CausalSelfAttentionState | None, batch: tuple[int, ...]
    ) -> Accumulated | None:
        """Return what a state holds, its batch axes flattened.

        Raises: TypeError if it is none; ValueError if it is of other sizes.
        """
        if state is None:
            return None
        if not isinstance(state, CausalSelfAttentionState):
            raise TypeError(
                f"{type(self).__name__}: expected a CausalSelfAttentionState, got {type(state)}"
            )
        if state.k_accum is None:
            return None
        widths = (self.key_dim_per_head.size, self.value_dim_per_head.size)
        heads, slots = self.num_heads.size, state.k_accum.shape[-3]
        shapes = [() if x is None else x.shape for x in state[:2]]
        expected = [(*batch, slots, heads, width) for width in widths]
        if shapes != expected or (self.window is not None and slots != self.window):
            raise ValueError(
                f"{type(self).__name__}: expected a state of keys and values "
                f"{[list(shape) for shape in expected]}, window={self.window}, got "
                f"{[list(shape) for shape in shapes]}"
            )
        streams = math.prod(batch)
        key, value = (x.reshape(streams, *x.shape[-3:]) for x in (state.k_accum, state.v_accum))
        position = state.accum_axis
        if isinstance(position, Tensor):
            check_fits(type(self).__name__, "accum_axis, int", position, batch, INTEGERS)
            position = position.expand(batch).reshape(-1).to(torch.int64)
            self._check_holds_all(position, slots)
        elif self.window is not None or position != slots:
            raise ValueError(
                f"{type(self).__name__}: expected accum_axis, int64 [*batch], or without a window "
                f"the int {slots}, how many keys there are, got {position}"
            )
        return Accumulated(key, value, position)

    def _check_holds_all(self, position: Tensor, slots: int) -> None:
        """Raise ValueError if a buffer that grows has fewer slots than steps were seen."""
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        if self.window is not None or is_traced or position.device.type != "cpu":
            return
        if (position > slots).any():
            raise ValueError(
                f"{type(self).__name__}: expected a state that holds every step without a window, "
                f"got {slots} slots and accum_axis {position.tolist()}; was it made with a window?"
            )


def _state_of(held: Accumulated, batch: tuple[int, ...]) -> CausalSelfAttentionState:
    """Return the state with the caller's batch axes."""
    if len(batch) == 1:  # not as views: compiled code would tell the first state from others
        return CausalSelfAttentionState(*held)
    key, value = (x.reshape(*batch, *x.shape[1:]) for x in (held.key, held.value))
    position = held.position
    position = position.reshape(batch) if isinstance(position, Tensor) else position
    return CausalSelfAttentionState(key, value, position)
