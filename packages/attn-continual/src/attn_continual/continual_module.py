"""`ContinualModule`: the contract of layers that run whole sequences, chunks and single steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attn_continual.call_mode import CallMode, checked_call_mode, current_call_mode
from attn_continual.streams import detach, snapshot, tensors_of


class ModuleState(NamedTuple):
    """What `get_state` returns and `set_state` takes: a snapshot that later steps do not touch."""

    tensors: Any
    """The functional state; see `streams`."""
    steps: int
    """How many steps it has seen, so that nobody has to ask the device."""


class ContinualModule(nn.Module, ABC):
    """Run over a whole sequence, over the next chunk of a stream, or over its next step.

    Functional, for graphs and for streams of different lengths: `initial_state`, `step` and
    `steps` take and return the state, which holds tensors alone, and say which outputs are valid.
    A subclass defines these and `forward`.

    On top, with the state inside the module and all streams at the same step: `forward_step`
    returns None until `receptive_field` steps were seen, `forward_steps` the outputs that there
    are, or None. No method waits for the device.
    """

    receptive_field: int = 1
    """Steps that an output depends on, and so the steps until the first one."""
    delay: int = 0
    """Steps from an input to the output of the same place in the sequence."""
    time_axis: int = 1
    """The axis of time in what `forward_steps` takes and returns."""
    detaches_state: bool = True
    """Whether stepping cuts the history of gradients. False: back-propagation through time."""

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401  those of the base
        super().__init__(*arguments, **named)
        self._state: Any = None
        self._steps = 0
        self._call_mode: CallMode = "forward"

    @abstractmethod
    def initial_state(
        self,
        num_streams: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Any:  # noqa: ANN401  the subclass knows
        """Return the state of streams that have seen nothing; default: as the parameters are."""

    @abstractmethod
    def step(
        self,
        x: Tensor,
        state: Any,  # noqa: ANN401
        *,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, Any, Tensor]:
        """Return the outputs of the next step of each stream, the new state, and valid, bool [N].

        x: the step's input, without the axis of time. An output that is not valid is some number.
        active: bool [N]: the other streams keep their state, and their outputs are not valid.
        in_place: the memory of `state` may be used for the new one; else it is left as it is.
        """

    @abstractmethod
    def steps(
        self,
        x: Tensor,
        state: Any,  # noqa: ANN401
        *,
        active: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, Any, Tensor]:
        """Return the outputs of the next T steps, the new state, and valid, bool [N, T]."""

    def forward_step(
        self,
        x: Tensor,
        update_state: bool = True,
        **inputs: Tensor | None,
    ) -> Tensor | None:
        """Return the output of the next step, or None while fewer than `receptive_field` were seen.

        x: without the axis of time.
        update_state: False leaves the state as it is, to the bit.
        Raises: ValueError if the number of streams is another than before.
        """
        state = self._state_for(x.shape[0], x)
        out, new_state, _ = self.step(x, state, in_place=_may_overwrite(update_state), **inputs)
        seen = self._steps + 1
        if update_state:
            self._keep(new_state, seen)
        return out if seen >= self.receptive_field else None

    def forward_steps(
        self,
        x: Tensor,
        pad_end: bool = False,
        update_state: bool = True,
        **inputs: Tensor | None,
    ) -> Tensor | None:
        """Return the outputs of the next T steps from `receptive_field` on, or None without any.

        pad_end: `delay` steps of zeros follow, so that the last inputs have an output too; the
            state does not see them.
        Raises: ValueError if the number of streams is another than before.
        """
        time = self.time_axis
        state = self._state_for(x.shape[1 if time == 0 else 0], x)
        out, new_state, _ = self.steps(x, state, in_place=_may_overwrite(update_state), **inputs)
        if pad_end and self.delay > 0:
            zeros = x.new_zeros([self.delay if a == time else n for a, n in enumerate(x.shape)])
            out = torch.cat([out, self.steps(zeros, new_state)[0]], dim=time)
        missing = min(max(self.receptive_field - 1 - self._steps, 0), out.shape[time])
        if update_state:
            self._keep(new_state, self._steps + x.shape[time])
        out = out.narrow(time, missing, out.shape[time] - missing)
        return out if out.shape[time] > 0 else None

    def get_state(self) -> ModuleState | None:
        """Return a snapshot of the state, or None before the first step."""
        return None if self._state is None else ModuleState(snapshot(self._state), self._steps)

    def set_state(self, state: ModuleState | None) -> None:
        """Go on from a snapshot, which stays good; None: from the beginning.

        Raises: TypeError if it is no `ModuleState`; ValueError if its tensors are not as this
        module's.
        """
        if state is None:
            return self.clean_state()
        if not isinstance(state, ModuleState):
            raise TypeError(
                f"{type(self).__name__}: expected a state of get_state, got {type(state)}"
            )
        given = tensors_of(state.tensors)
        own = tensors_of(self.initial_state(given[0].shape[0] if given else 0))
        if [x.shape for x in given] != [x.shape for x in own]:
            raise ValueError(
                f"{type(self).__name__}: expected a state of tensors "
                f"{[list(x.shape) for x in own]}, got {[list(x.shape) for x in given]}; was it "
                "made by a module of other sizes?"
            )
        self._state, self._steps = snapshot(state.tensors), state.steps
        return None

    def clean_state(self) -> None:
        """Forget every step."""
        self._state, self._steps = None, 0

    def warm_up(self, step_shape: tuple[int, ...]) -> None:
        """Feed zeros, of the shape of a step's input, until the next step has an output."""
        reference = next(self.parameters(), torch.empty(0))
        for _ in range(self.receptive_field - 1):
            self.forward_step(reference.new_zeros(step_shape))

    @property
    def call_mode(self) -> CallMode:
        """The method that calling the module runs, unless a `call_mode` context says otherwise."""
        return self._call_mode

    @call_mode.setter
    def call_mode(self, mode: CallMode) -> None:
        self._call_mode = checked_call_mode(mode)

    def __call__(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401  those of the method
        """Run the method of the call mode."""
        mode = current_call_mode(self._call_mode)
        if mode == "forward":
            return super().__call__(*arguments, **named)
        return getattr(self, mode)(*arguments, **named)

    def _state_for(self, num_streams: int, x: Tensor) -> Any:  # noqa: ANN401
        """Return the state to go on from, for inputs like `x`."""
        if self._state is None:
            return self.initial_state(num_streams, device=x.device, dtype=x.dtype)
        held = tensors_of(self._state)[0].shape[0]
        if held != num_streams:
            raise ValueError(
                f"{type(self).__name__}: expected {held} streams as before, got {num_streams}; "
                "call clean_state to begin anew, or use step with a state of your own"
            )
        return self._state

    def _keep(self, state: Any, steps: int) -> None:  # noqa: ANN401
        cuts = self.detaches_state and torch.is_grad_enabled()
        self._state = detach(state) if cuts else state
        self._steps = steps


def _may_overwrite(update_state: bool) -> bool:
    """Return whether a step may write into the state's memory: autograd may need what it holds."""
    return update_state and not torch.is_grad_enabled()
