"""`FunctionalStep`: a continual module's step from tensors to tensors, for graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from attn_continual.streams import map_state, tensors_of

if TYPE_CHECKING:
    from attn_continual.continual_module import ContinualModule


class FunctionalStep(nn.Module):
    """Call a module's functional step with the state's tensors one by one, in their order.

    So `torch.export`, `torch.jit.trace` and programs in C++ take it: (x, *state) to (y, *state,
    valid), where `initial_state` gives the first state. `module` is held, not copied.

    method: "step", or "steps" for chunks.
    Raises: ValueError for another method.

    >>> import torch
    >>> from attn_continual import SingleOutputMultiheadAttention
    >>> step = FunctionalStep(SingleOutputMultiheadAttention(8, 2, sequence_len=4))
    >>> y, *state, valid = step(torch.randn(3, 8), *step.initial_state(3))
    >>> valid
    tensor([False, False, False])
    """

    def __init__(self, module: ContinualModule, method: Literal["step", "steps"] = "step") -> None:
        super().__init__()
        if method not in ("step", "steps"):
            raise ValueError(f"FunctionalStep: expected method 'step' or 'steps', got {method!r}")
        self.module = module
        self.method = method
        self._structure = module.initial_state(1, device="meta")
        self.train(module.training)

    def initial_state(self, num_streams: int) -> list[Tensor]:
        """Return the tensors of the state of streams that have seen nothing."""
        return tensors_of(self.module.initial_state(num_streams))

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs, the tensors of the new state, and valid.

        Raises: ValueError if the state has another number of tensors.
        """
        expected = len(tensors_of(self._structure))
        if len(state) != expected:
            raise ValueError(
                f"FunctionalStep: expected the {expected} tensors of a state, got {len(state)}; "
                "initial_state returns the first one"
            )
        tensors = iter(state)
        given = map_state(lambda _: next(tensors), self._structure)
        out, new_state, valid = getattr(self.module, self.method)(x, given)
        return out, *tensors_of(new_state), valid
