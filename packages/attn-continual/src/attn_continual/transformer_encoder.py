"""Transformer encoders over streams, in two forms that differ in what a deep layer sees."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attn_continual._layout import SequenceLayout, step_rows
from attn_continual._projections import check_causal_hint, torch_bias, torch_padding
from attn_continual._sliding_rows import late_rows
from attn_continual.continual_encoder_layer import ContinualEncoderLayer, EncoderLayerState
from attn_continual.continual_module import ContinualModule
from attn_continual.encoder_layer_factory import EncoderLayerKind, encoder_layer_class
from attn_continual.window_attention import padding_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from attn_continual.encoder_layer import TransformerEncoderLayer


class ContinualTransformerEncoder(ContinualModule):
    """Layers in a row and a norm after them, with torch's names of parameters.

    A subclass says which kinds of layers there are, and how rows go through them.
    Steps take torch's masks by name: `mask`, that of the window, and `src_key_padding_mask`, which
    steps no query is to see.
    """

    inputs_without_time = ("mask",)
    layers: Any
    """nn.ModuleList of `TransformerEncoderLayer`"""
    layout: SequenceLayout

    def __init__(
        self,
        encoder_layer: Callable[[EncoderLayerKind], TransformerEncoderLayer],
        num_layers: int,
        norm: nn.Module | None = None,
    ) -> None:
        if isinstance(encoder_layer, nn.Module):
            raise TypeError(
                f"{type(self).__name__}: expected what makes layers, as a "
                f"TransformerEncoderLayerFactory does, got a {type(encoder_layer).__name__}; "
                "continual converts torch's encoders"
            )
        if num_layers < 1:
            raise ValueError(f"{type(self).__name__}: expected 1 layer or more, got {num_layers}")
        super().__init__()
        self.layers = nn.ModuleList(encoder_layer(kind) for kind in self.kinds(num_layers))
        self.num_layers = num_layers
        self.norm = norm
        first = self.layers[0]
        self.layout = first.layout
        self.time_axis = self.layout.time_axis
        self.receptive_field = self.receptive_field_of(num_layers, first.receptive_field)
        continual = (layer for layer in self.layers if isinstance(layer, ContinualEncoderLayer))
        self.delay = sum(layer.delay for layer in continual)

    @staticmethod
    @abstractmethod
    def kinds(num_layers: int) -> list[EncoderLayerKind]:
        """Return the kind of each layer."""

    @staticmethod
    @abstractmethod
    def receptive_field_of(num_layers: int, window: int) -> int:
        """Return how many steps an output depends on."""

    @classmethod
    def build_from(
        cls,
        encoder: nn.TransformerEncoder,
        sequence_len: int,
        **options: Any,  # noqa: ANN401  arguments of the layers
    ) -> Self:
        """Return an encoder with the weights, mode, settings and layout of torch's, not shared.

        options: what else `TransformerEncoderLayer` takes, such as embed_dim_second.
        """
        sources: Any = iter(encoder.layers)

        def encoder_layer(kind: EncoderLayerKind) -> TransformerEncoderLayer:
            layer, more = encoder_layer_class(kind)
            return layer.build_from(next(sources), sequence_len, **more, **options)

        built = cls(encoder_layer, encoder.num_layers, copy.deepcopy(encoder.norm))
        return built.train(encoder.training)

    def to_torch(self) -> nn.TransformerEncoder:
        """Return torch's encoder with this one's weights, mode and settings, sharing nothing.

        Torch's encoder takes no features before time: `embed_dim_second` is not kept.
        """
        layers = [layer.to_torch() for layer in self.layers]
        built = nn.TransformerEncoder(
            layers[0], 1, copy.deepcopy(self.norm), enable_nested_tensor=False
        )
        built.layers = nn.ModuleList(layers)
        built.num_layers = self.num_layers
        return built.train(self.training)

    @property
    def layers_with_state(self) -> list[ContinualEncoderLayer]:
        """The layers that remember steps."""
        return [layer for layer in self.layers if isinstance(layer, ContinualEncoderLayer)]

    @abstractmethod
    def run_rows(
        self,
        rows: Tensor,
        state: tuple[EncoderLayerState, ...],
        padding: Tensor | None = None,
        attn_mask: Tensor | None = None,
        *,
        single: bool = False,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, tuple[EncoderLayerState, ...], Tensor]:
        """Do what `steps` does with rows [N, T, E] before the last norm, whatever the layout.

        padding: bool [N, T], True hides a step. attn_mask: of the window, as torch's.
        """

    def initial_state(
        self,
        num_streams: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[EncoderLayerState, ...]:
        """Return the state of streams that have seen nothing."""
        return tuple(
            layer.initial_state(num_streams, device=device, dtype=dtype)
            for layer in self.layers_with_state
        )

    def step(
        self,
        x: Tensor,
        state: tuple[EncoderLayerState, ...],
        *,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, tuple[EncoderLayerState, ...], Tensor]:
        """Return the output [N, E] of the next step for x [N, E], the new state, and valid [N].

        mask: as torch's for the window, [L, L] or [N * nhead, L, L], in every layer.
        src_key_padding_mask: bool [N], True hides this step from every query of every layer.
        """
        out, state, valid = self.run_rows(
            step_rows(x),
            state,
            torch_padding(src_key_padding_mask, single=True),
            mask,
            single=True,
            active=active,
            in_place=in_place,
        )
        return self._normed(out)[:, 0], state, valid[:, 0]

    def steps(
        self,
        x: Tensor,
        state: tuple[EncoderLayerState, ...],
        *,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, tuple[EncoderLayerState, ...], Tensor]:
        """Return the outputs of the next T steps, the new state, and valid, bool [N, T].

        src_key_padding_mask: bool [N, T]. The rest as for `step`.
        """
        out, state, valid = self.run_rows(
            self.layout.to_rows(x),
            state,
            torch_padding(src_key_padding_mask),
            mask,
            active=active,
            in_place=in_place,
        )
        return self.layout.from_rows(self._normed(out)), state, valid

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Return what torch's encoder gives for the whole sequence, without windows.

        All rows; of a deep `TransformerEncoder` the last. Masks as for torch.
        """
        check_causal_hint(mask, is_causal)
        rows = self.layout.to_rows(src)
        heads = self.layers[0].self_attn.num_heads
        bias = torch_bias(mask, src_key_padding_mask, rows.shape[1], heads)
        for layer in self.layers:
            rows = layer.encode(rows, bias)
        return self.layout.from_rows(self._normed(rows))

    def _normed(self, rows: Tensor) -> Tensor:
        return rows if self.norm is None else self.norm(rows)


class TransformerEncoder(ContinualTransformerEncoder):
    """Encode at every step the window of the last `sequence_len`, and give its newest row.

    After L = sequence_len steps an output is the last row of torch's `nn.TransformerEncoder` over
    the window, for any number of layers: in deep layers too, a row sees the window as it is now.
    That costs most of a whole encoding from the second layer on. The first layer is retroactive
    and projects only the new step, the last computes one row. A single layer computes one row of
    everything. `StackedTransformerEncoder` is as cheap at any depth, but another function.

    Shapes: forward_step [N, E], E = d_model, to the same, or None; forward_steps [N, E, T] to
        [N, E, T'], the steps from the L-th on, or None; forward [N, E, T] to [N, E, 1], the last
        row; with one layer to [N, E, T]. Layouts as the layers'.
    encoder_layer: a `TransformerEncoderLayerFactory`, or what makes a layer of each kind.
    norm: applied to each row of the output.
    Masks: of `forward` torch's; of steps, by name, `mask`, torch's of the window, and
        `src_key_padding_mask`, bool, True hiding a step from all layers. A query that sees no key
        gets 0 from attention before its projection.
    Positions: a window moves, so use `RecyclingPositionalEncoding`.
    Raises: ValueError for no layers, or if `sequence_len` is missing; TypeError for a layer.
    Source: Hedegaard et al. 2022, arXiv:2201.06268.
    """

    @staticmethod
    def kinds(num_layers: int) -> list[EncoderLayerKind]:
        """Return the kind of each layer."""
        if num_layers == 1:
            return ["single_output"]
        between: list[EncoderLayerKind] = ["regular"] * (num_layers - 2)
        return ["retroactive", *between, "single_output_forward"]

    @staticmethod
    def receptive_field_of(num_layers: int, window: int) -> int:
        """Return how many steps an output depends on."""
        del num_layers
        return window

    @property
    def layers_with_state(self) -> list[ContinualEncoderLayer]:
        """The layers that remember steps: the others get whole windows from the first."""
        return list(self.layers[:1])

    def run_rows(
        self,
        rows: Tensor,
        state: tuple[EncoderLayerState, ...],
        padding: Tensor | None = None,
        attn_mask: Tensor | None = None,
        *,
        single: bool = False,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, tuple[EncoderLayerState, ...], Tensor]:
        """Do what `steps` does with rows [N, T, E] before the last norm, whatever the layout."""
        first, *others = self.layers
        bias = None
        if others:  # before the first layer, which may write into the state
            hidden = padding_of(padding, rows)
            bias = first.self_attn.bias_of_windows(hidden, state[0].attention, attn_mask)
        out, held, valid = first.run_rows(
            rows, state[0], padding, attn_mask, single=single, active=active, in_place=in_place
        )
        if others:
            windows = out.flatten(0, 1)
            for layer in others:
                windows = layer.encode(windows, bias)
            out = windows.reshape(rows.shape)
        return out, (held,), valid


class StackedTransformerEncoder(ContinualTransformerEncoder):
    """Encode one row in each layer at every step, over a window of the layer's own.

    A layer's window holds the last `sequence_len` outputs of the layer before, as they were at
    their time. So nothing is computed twice, and a step costs O(n L E), but an output depends on
    n (L - 1) + 1 steps, n layers of windows of L. With one layer this is `TransformerEncoder`;
    with more it is another function, for which weights are best trained or tuned: train it with
    `forward_steps`. `forward` is torch's encoder without windows. A mask is that of each layer's
    own window. Layers may look ahead by a `query_index`; their delays add up.

    Shapes: forward_step [N, E], E = d_model, to the same, or None; forward_steps [N, E, T] to
        [N, E, T'], the steps from the (n (L - 1) + 1)-th on, or None; forward [N, E, T] to the
        same. Layouts as the layers'.
    Arguments, positions and errors: as for `TransformerEncoder`.
    Source: DeepCoT, arXiv:2511.17693.
    """

    @staticmethod
    def kinds(num_layers: int) -> list[EncoderLayerKind]:
        """Return the kind of each layer."""
        return ["single_output"] * num_layers

    @staticmethod
    def receptive_field_of(num_layers: int, window: int) -> int:
        """Return how many steps an output depends on."""
        return num_layers * (window - 1) + 1

    def run_rows(
        self,
        rows: Tensor,
        state: tuple[EncoderLayerState, ...],
        padding: Tensor | None = None,
        attn_mask: Tensor | None = None,
        *,
        single: bool = False,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, tuple[EncoderLayerState, ...], Tensor]:
        """Do what `steps` does with rows [N, T, E] before the last norm, whatever the layout."""
        before = state[0].attention.position
        new = torch.arange(1, rows.shape[1] + 1, device=before.device)
        valid = before[:, None] + new >= self.receptive_field
        held = []
        for layer, layer_state in zip(self.layers, state, strict=True):
            late, attention = padding, layer_state.attention
            if layer.delay > 0:
                hidden = padding_of(padding, rows)
                late = late_rows(attention.padding, hidden, attention.position, layer.delay)
            rows, layer_state, _ = layer.run_rows(  # noqa: PLW2901
                rows,
                layer_state,
                padding,
                attn_mask,
                single=single,
                active=active,
                in_place=in_place,
            )
            held.append(layer_state)
            padding = late
        return rows, tuple(held), valid if active is None else valid & active[:, None]
