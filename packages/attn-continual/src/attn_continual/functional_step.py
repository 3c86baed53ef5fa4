"""`FunctionalStep`: a continual module's step from tensors to tensors, for graphs."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from attn_continual.streams import map_state, tensors_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attn_continual.continual_module import ContinualModule


class FunctionalStep(nn.Module):
    """Call a module's functional step with the state's tensors one by one, in their order.

    So `torch.export`, `torch.jit.trace` and programs in C++ take it: (x, *state, *inputs) to (y,
    *state, valid), where `initial_state` gives the first state. `module` is held, not copied.

    method: "step", or "steps" for chunks.
    inputs: names of what else the method takes, as "key_padding_mask" or "active", in the order in
        which the tensors follow the state.
    Raises: ValueError for another method, or a name that it does not take.

    >>> import torch
    >>> from attn_continual import SingleOutputMultiheadAttention
    >>> step = FunctionalStep(SingleOutputMultiheadAttention(8, 2, sequence_len=4))
    >>> y, *state, valid = step(torch.randn(3, 8), *step.initial_state(3))
    >>> valid
    tensor([False, False, False])
    """

    def __init__(
        self,
        module: ContinualModule,
        method: Literal["step", "steps"] = "step",
        inputs: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if method not in ("step", "steps"):
            raise ValueError(f"FunctionalStep: expected method 'step' or 'steps', got {method!r}")
        _check_inputs(module, method, inputs)
        self.module = module
        self.method = method
        self.inputs = tuple(inputs)
        self._structure = module.initial_state(1, device="meta")
        self.train(module.training)

    def initial_state(self, num_streams: int) -> list[Tensor]:
        """Return the tensors of the state of streams that have seen nothing."""
        return tensors_of(self.module.initial_state(num_streams))

    def forward(self, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs, the tensors of the new state, and valid.

        tensors: those of the state, and then the further inputs.
        Raises: ValueError if there are more or fewer.
        """
        expected = len(tensors_of(self._structure))
        if len(tensors) != expected + len(self.inputs):
            beside = f" and {', '.join(self.inputs)}" if self.inputs else ""
            raise ValueError(
                f"FunctionalStep: expected the {expected} tensors of a state{beside}, got "
                f"{len(tensors)}; initial_state returns the first one"
            )
        of_state = iter(tensors)
        given = map_state(lambda _: next(of_state), self._structure)
        named = dict(zip(self.inputs, of_state, strict=True))
        out, new_state, valid = getattr(self.module, self.method)(x, given, **named)
        return out, *tensors_of(new_state), valid


def _check_inputs(module: ContinualModule, method: str, inputs: Sequence[str]) -> None:
    parameters = inspect.signature(getattr(module, method)).parameters
    takes_any = any(x.kind is x.VAR_KEYWORD for x in parameters.values())
    known = [name for name in parameters if name not in ("x", "state", "in_place", "inputs")]
    unknown = [name for name in inputs if name not in known and not takes_any]
    if isinstance(inputs, str) or unknown or len(set(inputs)) != len(inputs):
        raise ValueError(
            f"FunctionalStep: expected inputs, some of {', '.join(known)}, each once, got {inputs}"
        )
