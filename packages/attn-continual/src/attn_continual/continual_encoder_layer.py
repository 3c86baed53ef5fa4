"""Encoder layers over a sliding window: a single row's output at each step, or every row's."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

from attn_continual._layout import step_rows
from attn_continual._projections import check_features, torch_padding
from attn_continual._sliding_rows import keep_rows, late_rows, sliding_windows
from attn_continual._step_checks import check_rows
from attn_continual.continual_module import ContinualModule
from attn_continual.encoder_layer import TransformerEncoderLayer
from attn_continual.retroactive import RetroactiveMultiheadAttention
from attn_continual.single_output import SingleOutputMultiheadAttention
from attn_continual.streams import loadable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from attn_continual._multihead_attention import ContinualMultiheadAttention
    from attn_continual.window_attention import WindowState


@loadable
class EncoderLayerState(NamedTuple):
    """What an encoder layer remembers of N streams."""

    attention: WindowState
    rows: Tensor
    """[N, R, E]: a ring of inputs that outputs to come are added to"""


class ContinualEncoderLayer(ContinualModule, TransformerEncoderLayer):
    """An encoder layer over a sliding window, step by step; subclasses say which rows it encodes.

    Steps take torch's masks by name: `src_mask`, that of the window, and `src_key_padding_mask`,
    which steps no query is to see.
    """

    self_attn: ContinualMultiheadAttention
    inputs_without_time = ("src_mask",)

    def _attend_with(
        self, attention: type[ContinualMultiheadAttention], options: dict[str, Any]
    ) -> None:
        """Give torch's attention the way of `attention`, keeping its weights."""
        options = {"sequence_len": self.sequence_len, **options}
        self.self_attn = attention.build_from(self.self_attn, **options)
        self.receptive_field = self.self_attn.receptive_field
        self.delay = self.self_attn.delay
        self.time_axis = self.layout.time_axis

    @property
    @abstractmethod
    def num_rows_kept(self) -> int:
        """Inputs of earlier steps that outputs to come are added to."""

    @abstractmethod
    def residual_rows(self, rows: Tensor, state: EncoderLayerState) -> Tensor:
        """Return the inputs that the attention of the next T steps is added to."""

    def initial_state(
        self,
        num_streams: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> EncoderLayerState:
        """Return the state of streams that have seen nothing."""
        attention = self.self_attn.initial_state(num_streams, device=device, dtype=dtype)
        shape = (num_streams, self.num_rows_kept, self.self_attn.embed_dim)
        return EncoderLayerState(attention, attention.key.new_zeros(shape))

    def step(
        self,
        x: Tensor,
        state: EncoderLayerState,
        *,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, EncoderLayerState, Tensor]:
        """Return the output of the next step for x [N, E], the new state, and valid, bool [N].

        src_mask: as torch's for the window, [L, L] or [N * nhead, L, L].
        src_key_padding_mask: bool [N], True hides this step from every query.
        """
        out, state, valid = self.run_rows(
            step_rows(x),
            state,
            torch_padding(src_key_padding_mask, single=True),
            src_mask,
            single=True,
            active=active,
            in_place=in_place,
        )
        return self.layout.from_step(out), state, valid[:, 0]

    def steps(
        self,
        x: Tensor,
        state: EncoderLayerState,
        *,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, EncoderLayerState, Tensor]:
        """Return the outputs of the next T steps, the new state, and valid, bool [N, T].

        src_key_padding_mask: bool [N, T]. The rest as for `step`.
        """
        out, state, valid = self.run_rows(
            self.layout.to_rows(x),
            state,
            torch_padding(src_key_padding_mask),
            src_mask,
            active=active,
            in_place=in_place,
        )
        return self.layout.from_chunk(out), state, valid

    def run_rows(
        self,
        rows: Tensor,
        state: EncoderLayerState,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        *,
        single: bool = False,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, EncoderLayerState, Tensor]:
        """Do what `steps` does with rows [N, T, E], whatever the layout of sequences.

        single: whether T is 1, for which there is a shorter way.
        """
        position = state.attention.position
        check_rows(type(self).__name__, position.shape[0], active, rows=rows)
        check_features(self.self_attn, rows, rows, rows)
        residual = self.residual_rows(rows, state)
        # Attention may advance the position in place; rows are kept when it has refused nothing.
        before = position.clone() if in_place else position
        attended, attention, valid = self.self_attn.run_rows(
            self.attention_input(rows),
            None,
            None,
            state.attention,
            key_padding_mask,
            attn_mask,
            single=single,
            active=active,
            in_place=in_place,
        )
        kept = keep_rows(state.rows, rows, before, active, in_place=single and in_place)
        out = self.after_attention(residual, attended)
        return out, EncoderLayerState(attention, kept), valid


class SingleOutputTransformerEncoderLayer(ContinualEncoderLayer):
    """Encode one row of the last `sequence_len` steps, at every step.

    Parameters are those of torch's encoder layer. After L = sequence_len steps an output is the
    row `query_index` of torch's layer over the window.

    Shapes: forward and forward_steps [N, E, T], E = d_model, to every row's output, or to those of
        the steps from the L-th on (layouts as for `TransformerEncoderLayer`); forward_step [N, E]
        to the same, or None.
    Cost of a step: O(L E) for attention, and one row of everything else.
    Further arguments: those of `TransformerEncoderLayer`.
    Masks: of `forward` torch's; of steps, by name, `src_mask`, torch's of the window, and
        `src_key_padding_mask`, bool, True hiding a step.
    single_output_forward: forward has the output of row `query_index` alone.
    query_index: as for `SingleOutputMultiheadAttention`.
    Raises: ValueError if `sequence_len` is missing or no length, or `query_index` is outside of it.
    Source: Hedegaard et al. 2022, arXiv:2201.06268.
    """

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401  those of the base
        single_output_forward: bool = False,
        query_index: int = -1,
        **named: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*arguments, **named)
        options = {"query_index": query_index, "single_output_forward": single_output_forward}
        self._attend_with(SingleOutputMultiheadAttention, options)

    def queries_of_forward(self, length: int) -> slice:
        """Return which rows of a sequence have an output in `forward`."""
        return self.self_attn.queries_of_forward(length)

    @property
    def num_rows_kept(self) -> int:
        """Inputs whose output is to come."""
        return self.delay

    def residual_rows(self, rows: Tensor, state: EncoderLayerState) -> Tensor:
        """Return the inputs [N, T, E] of the rows whose outputs come next."""
        return late_rows(state.rows, rows, state.attention.position, self.delay)


class RetroactiveTransformerEncoderLayer(ContinualEncoderLayer):
    """Encode every row of the last `sequence_len` steps, at every step.

    Parameters are those of torch's encoder layer. After L = sequence_len steps an output is that
    of torch's layer over the window.

    Shapes: forward [N, E, T], E = d_model, to the same; forward_step [N, E] to the window
        [N, E, L], or None; forward_steps [N, E, T] to windows [N, E, T', L]. Other layouts as for
        `RetroactiveMultiheadAttention`.
    Cost of a step: O(L^2 E) for attention, and L rows of everything else but the projections.
    Masks: as for `SingleOutputTransformerEncoderLayer`.
    Further arguments: those of `TransformerEncoderLayer`.
    Raises: ValueError if `sequence_len` is missing or no length.
    Source: Hedegaard et al. 2022, arXiv:2201.06268.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401  those of the base
        super().__init__(*arguments, **named)
        self._attend_with(RetroactiveMultiheadAttention, {})

    @property
    def output_stream_axis(self) -> int:
        """The axis of streams in windows, which time first puts behind the window."""
        return 2 if self.time_axis == 0 else 0

    @property
    def num_rows_kept(self) -> int:
        """Inputs of a window before its last."""
        return self.receptive_field - 1

    def residual_rows(self, rows: Tensor, state: EncoderLayerState) -> Tensor:
        """Return the inputs [N, T, L, E] of the windows that end at each step."""
        position = state.attention.position
        (windows,) = sliding_windows([state.rows], [rows], position, self.receptive_field)
        return windows.to(rows.dtype)
