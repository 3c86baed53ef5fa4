"""A module's outputs plus the inputs of the same place in the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from attn_continual._sliding_rows import keep_rows, late_rows
from attn_continual.continual_module import ContinualModule
from attn_continual.ring_cache import advance
from attn_continual.streams import loadable

if TYPE_CHECKING:
    from torch import Tensor


@loadable
class ResidualState(NamedTuple):
    """What a residual remembers of N streams."""

    module: Any
    """The state of the module within"""
    rows: Tensor
    """[N, delay, C]: inputs whose output is to come"""
    position: Tensor
    """int64 [N]: steps seen"""


class Residual(ContinualModule):
    """Add to each output of a module the input that it belongs to, `delay` steps before.

    Delay is not warm-up: a window's newest query has its output at once, though the first comes
    when the window is full.

    Shapes: those of the module, whose outputs are as wide as its inputs.
    num_features: of a step's input; default: the module's `embed_dim`.
    Raises: ValueError if neither is known; TypeError if the module is no continual one.
    """

    def __init__(self, module: ContinualModule, num_features: int | None = None) -> None:
        super().__init__()
        if not isinstance(module, ContinualModule):
            raise TypeError(f"Residual: expected a ContinualModule, got {type(module).__name__}")
        features = getattr(module, "embed_dim", None) if num_features is None else num_features
        if not isinstance(features, int):
            raise ValueError(  # noqa: TRY004  the number is missing, not of a wrong type
                f"Residual: expected num_features, as {type(module).__name__} has no embed_dim"
            )
        self.module = module
        self.num_features = features
        self.receptive_field = max(module.receptive_field, module.delay + 1)
        self.delay = module.delay
        self.time_axis = module.time_axis

    @property
    def warm_up_steps(self) -> int:
        """Steps of a stream that have no output, the first ones."""
        return self.module.warm_up_steps

    def initial_state(
        self,
        num_streams: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> ResidualState:
        """Return the state of streams that have seen nothing."""
        parameter = next(self.module.parameters(), torch.empty(0))
        device = parameter.device if device is None else device
        dtype = parameter.dtype if dtype is None else dtype
        return ResidualState(
            self.module.initial_state(num_streams, device=device, dtype=dtype),
            torch.zeros(num_streams, self.delay, self.num_features, device=device, dtype=dtype),
            torch.zeros(num_streams, dtype=torch.int64, device=device),
        )

    def step(
        self,
        x: Tensor,
        state: ResidualState,
        *,
        active: Tensor | None = None,
        in_place: bool = False,
        **inputs: Tensor | None,
    ) -> tuple[Tensor, ResidualState, Tensor]:
        """Return the output [N, C] of the next step, the new state, and valid, bool [N].

        inputs: what else the module's step takes, as masks.
        """
        self._check_features(x)
        out, inner, valid = self.module.step(
            x, state.module, active=active, in_place=in_place, **inputs
        )
        late, state = self._late(x[:, None], state, inner, active, in_place=in_place)
        return self._sum(out, late[:, 0]), state, valid

    def steps(
        self,
        x: Tensor,
        state: ResidualState,
        *,
        active: Tensor | None = None,
        in_place: bool = False,
        **inputs: Tensor | None,
    ) -> tuple[Tensor, ResidualState, Tensor]:
        """Return the outputs of the next T steps, the new state, and valid, bool [N, T].

        inputs: what else the module's steps take, as masks.
        """
        axes = (self.stream_axis, self.time_axis)
        rows = x.movedim(axes, (0, 1)) if x.dim() > max(axes) else x
        self._check_features(rows)
        out, inner, valid = self.module.steps(
            x, state.module, active=active, in_place=in_place, **inputs
        )
        late, state = self._late(rows, state, inner, active)
        return self._sum(out, late.movedim((0, 1), axes)), state, valid

    def forward(self, x: Tensor) -> Tensor:
        """Return the module's outputs over the whole sequence plus x.

        Raises: ValueError if the module has not one output per step.
        """
        out = self.module.forward(x)
        return self._sum(out[0] if isinstance(out, tuple) else out, x)

    def _after_the_end(
        self, x: Tensor, inputs: dict[str, Tensor | None]
    ) -> tuple[Tensor, dict[str, Tensor | None]]:
        """Return what the module is given for the `delay` steps after x."""
        return self.module._after_the_end(x, inputs)  # noqa: SLF001  the same class's

    def _check_features(self, rows: Tensor) -> None:
        if rows.shape[-1] != self.num_features:
            raise ValueError(
                f"Residual: expected inputs of num_features={self.num_features}, got "
                f"{rows.shape[-1]} features; make it with as many"
            )

    def _late(
        self,
        rows: Tensor,
        state: ResidualState,
        inner: Any,  # noqa: ANN401  the module's state
        active: Tensor | None,
        *,
        in_place: bool = False,
    ) -> tuple[Tensor, ResidualState]:
        """Return the inputs [N, T, C] of the next outputs, and the new state."""
        before = state.position
        late = late_rows(state.rows, rows, before, self.delay)
        kept = keep_rows(state.rows, rows, before, active, in_place=in_place)
        return late, ResidualState(inner, kept, advance(before, rows.shape[1], active))

    def _sum(self, out: Tensor, x: Tensor) -> Tensor:
        if out.shape != x.shape:
            raise ValueError(
                f"Residual: expected outputs of {type(self.module).__name__} shaped as its inputs, "
                f"{list(x.shape)}, got {list(out.shape)}; a single output has no residual in "
                "forward, and a retroactive one in no call"
            )
        return out + x
