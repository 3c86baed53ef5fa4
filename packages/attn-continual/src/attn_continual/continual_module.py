"""`ContinualModule`: the contract of layers that run whole sequences, chunks and single steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from attn_continual.call_mode import CallMode, checked_call_mode, current_call_mode
from attn_continual.streams import detach, loadable, map_state, snapshot, tensors_of

if TYPE_CHECKING:
    from typing_extensions import Self


@loadable
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
    returns None for the first `warm_up_steps` steps, `forward_steps` the outputs that there are,
    or None. These count steps in Python, which torch.compile would compile anew for: compile
    `step` and `steps`. No method waits for the device.
    """

    receptive_field: int = 1
    """Steps that an output depends on, the last ones."""
    delay: int = 0
    """Steps from an input to the output of the same place in the sequence."""
    time_axis: int = 1
    """The axis of time in what `forward_steps` takes and returns."""
    inputs_without_time: tuple[str, ...] = ()
    """Names of further inputs of `steps` that are no sequence, such as the mask of a window."""
    detaches_state: bool = True
    """Whether stepping cuts the history of gradients. False: back-propagation through time."""

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401  those of the base
        super().__init__(*arguments, **named)
        self._state: Any = None
        self._steps = 0
        self._owns_state = True  # whether no graph of gradients may hold the state's memory
        self._call_mode: CallMode = "forward"

    @abstractmethod
    def initial_state(
        self,
        num_streams: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Any:  # noqa: ANN401  the subclass knows
        """Return the state of streams that have seen nothing; default: as the parameters are.

        dtype: of what is remembered; outputs keep that of the inputs.
        """

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
        """Return the output of the next step, or None for the first `warm_up_steps` ones.

        x: without the axis of time.
        update_state: False leaves the state as it is, to the bit.
        Raises: ValueError if the number of streams is another than before.
        """
        state = self._state_for(x, 0)
        in_place = self._may_overwrite(update_state)
        out, new_state, _ = self.step(x, state, in_place=in_place, **inputs)
        seen = self._steps + 1
        if update_state:
            self._keep(new_state, seen)
        return out if seen > self.warm_up_steps else None

    def forward_steps(
        self,
        x: Tensor,
        pad_end: bool = False,
        update_state: bool = True,
        **inputs: Tensor | None,
    ) -> Tensor | None:
        """Return the outputs of those of the next T steps that have one, or None without any.

        pad_end: `delay` steps of zeros follow, so that the last inputs have an output too; the
            state does not see them.
        Raises: ValueError if the number of streams is another than before.
        """
        time = self.time_axis
        state = self._state_for(x, self.stream_axis)
        in_place = self._may_overwrite(update_state)
        out, new_state, _ = self.steps(x, state, in_place=in_place, **inputs)
        if pad_end and self.delay > 0:
            zeros, inputs = self._after_the_end(x, inputs)
            more, *_ = self.steps(zeros, new_state, **inputs)  # pyright: ignore[reportArgumentType]
            out = torch.cat([out, more], dim=time)
        missing = min(max(self.warm_up_steps - self._steps, 0), out.shape[time])
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
        num_streams = given[0].shape[0] if given and given[0].dim() > 0 else 0
        initial = self.initial_state(num_streams)
        found, expected = ([_kind(x) for x in tensors] for tensors in (given, tensors_of(initial)))
        if found != expected:
            raise ValueError(
                f"{type(self).__name__}: expected a state of tensors {expected}, got {found}; was "
                "it made by a module of other sizes?"
            )
        copies = iter(given)
        self._state = map_state(lambda _: next(copies).clone(), initial)
        self._steps, self._owns_state = state.steps, True
        return None

    def clean_state(self) -> None:
        """Forget every step."""
        self._state, self._steps, self._owns_state = None, 0, True

    @property
    def stream_axis(self) -> int:
        """The axis of streams in what `forward_steps` takes."""
        return 1 if self.time_axis == 0 else 0

    @property
    def output_stream_axis(self) -> int:
        """The axis of streams in what `forward_steps` returns; `forward_step` leaves out time."""
        return self.stream_axis

    @property
    def warm_up_steps(self) -> int:
        """Steps of a stream that have no output, the first ones."""
        return self.receptive_field - 1

    def warm_up(self, step_shape: tuple[int, ...]) -> None:
        """Feed zeros, of the shape of a step's input, until the next step has an output."""
        reference = next(self.parameters(), torch.empty(0))
        with torch.no_grad():
            for _ in range(self.warm_up_steps):
                self.forward_step(reference.new_zeros(step_shape))

    @property
    def call_mode(self) -> CallMode:
        """The method that calling the module runs, unless a `call_mode` context says otherwise."""
        return self._call_mode

    @call_mode.setter
    def call_mode(self, mode: CallMode) -> None:
        self._call_mode = checked_call_mode(mode)

    def __call__(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401  those of the method
        """Run the method of the call mode.

        In steps and chunks None is answered by None: modules in a row, as in nn.Sequential, wait
        for each other's first output. Hooks are those of `forward`, and run in its mode alone.
        """
        mode = current_call_mode(self._call_mode)
        if mode == "forward":
            return super().__call__(*arguments, **named)
        if arguments and arguments[0] is None:
            return None
        return getattr(self, mode)(*arguments, **named)

    def _state_for(self, x: Tensor, stream_axis: int) -> Any:  # noqa: ANN401
        """Return the state to go on from, for inputs like `x`."""
        if x.dim() <= stream_axis:
            raise ValueError(
                f"{type(self).__name__}: expected inputs with streams at axis {stream_axis}, got "
                f"{list(x.shape)}"
            )
        num_streams = x.shape[stream_axis]
        if self._state is None:
            return self.initial_state(num_streams, device=x.device, dtype=x.dtype)
        tensors = tensors_of(self._state)
        if not torch.is_inference_mode_enabled() and any(x.is_inference() for x in tensors):
            self._state = snapshot(self._state)  # such tensors cannot be used outside
        held = tensors[0].shape[0]
        if held != num_streams:
            raise ValueError(
                f"{type(self).__name__}: expected {held} streams as before, got {num_streams}; "
                "call clean_state to begin anew, or use step with a state of your own"
            )
        return self._state

    def _after_the_end(
        self, x: Tensor, inputs: dict[str, Tensor | None]
    ) -> tuple[Tensor, dict[str, Tensor | None]]:
        """Return what `steps` is given for the `delay` steps after x: zeros."""
        return self._zeros_after(x), {name: inputs.get(name) for name in self.inputs_without_time}

    def _zeros_after(self, x: Tensor) -> Tensor:
        """Return zeros like x, of `delay` steps."""
        time = self.time_axis
        return x.new_zeros([*x.shape[:time], self.delay, *x.shape[time + 1 :]])

    def _may_overwrite(self, update_state: bool) -> bool:
        """Return whether a step may write into the state's memory: no graph may need it."""
        return update_state and self._owns_state and not torch.is_grad_enabled()

    def _keep(self, state: Any, steps: int) -> None:  # noqa: ANN401
        records = torch.is_grad_enabled()
        state = detach(state) if records and self.detaches_state else state
        # Not one by one: torch looks for parameters in all that a module is given.
        vars(self).update(_state=state, _steps=steps, _owns_state=not records)

    def _count_step(self) -> None:
        """Count a step that was written into the state which the module holds."""
        vars(self)["_steps"] += 1  # as in `_keep`

    def _apply(self, fn: Any, recurse: bool = True) -> Self:  # noqa: ANN401  torch's own signature
        """Move the state along with the parameters."""
        if self._state is not None:
            self._state = map_state(fn, self._state)
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles hold: a state of their own, without its history."""
        state = None if self._state is None else snapshot(detach(self._state))
        return {**self.__dict__, "_state": state}


def _kind(x: Tensor) -> str:
    """Return what a state's tensor cannot differ in: its shape, and whether it counts or hides."""
    dtype = "floating" if x.is_floating_point() else str(x.dtype).removeprefix("torch.")
    return f"{dtype} {list(x.shape)}"
