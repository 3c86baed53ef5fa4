"""States of many streams: choosing, stacking, resetting and holding single ones.

A state is a tensor, or a NamedTuple or tuple of states; the first axis of every tensor is that of
the streams. It holds nothing else, so that graphs take and return it; but those of RETURNN's layers
may hold an int, the steps that all streams have seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_State = TypeVar("_State", bound=tuple[Any, ...])


def loadable(kind: type[_State]) -> type[_State]:
    """Let `torch.load` with `weights_only` read states of this kind, which hold tensors alone."""
    torch.serialization.add_safe_globals([kind])
    return kind


def map_state(function: Callable[..., Tensor], *states: Any) -> Any:  # noqa: ANN401  a state
    """Return the state of `function` of each tensor, or of those at one place of all `states`."""
    first = states[0]
    if isinstance(first, Tensor):
        return function(*states)
    if isinstance(first, int | torch.SymInt):
        if any(number != first for number in states):
            raise ValueError(f"state: expected streams that have seen as many steps, got {states}")
        return first
    parts = [map_state(function, *part) for part in zip(*map(_parts, states), strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def tensors_of(state: Any) -> list[Tensor]:  # noqa: ANN401
    """Return the tensors of a state in their order."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, int | torch.SymInt):
        return []
    return [tensor for part in _parts(state) for tensor in tensors_of(part)]


def _parts(state: Any) -> Sequence[Any]:  # noqa: ANN401
    if not isinstance(state, tuple | list):
        raise TypeError(f"state: expected a tensor, or a tuple of states, got {type(state)}")
    return state


def snapshot(state: Any) -> Any:  # noqa: ANN401
    """Return a copy that later steps in place do not touch."""
    return map_state(torch.clone, state)


def detach(state: Any) -> Any:  # noqa: ANN401
    """Return the same state without its history of gradients."""
    return map_state(Tensor.detach, state)


def select_streams(state: Any, index: Tensor | Sequence[int]) -> Any:  # noqa: ANN401
    """Return the state of some streams: `index` holds their numbers, or is a bool mask [N].

    Raises: ValueError if the index has more axes than one.
    """
    chosen = torch.as_tensor(index)
    if chosen.dim() != 1:
        raise ValueError(
            "select_streams: expected the numbers of streams, or a mask, along one axis, got "
            f"{list(chosen.shape)}; make one axis of those of batch and beam"
        )
    chosen = chosen if chosen.numel() else chosen.long()  # an empty list would be of floats
    return map_state(lambda x: x[chosen.to(x.device)], state)


def stack_streams(states: Sequence[Any]) -> Any:  # noqa: ANN401
    """Return one state of the streams of all `states`, in their order.

    Raises: ValueError for no states, or of different sizes.
    """
    if not states:
        raise ValueError("stack_streams: expected a state or more, got none")
    _check_alike("stack_streams", *states)
    return map_state(lambda *tensors: torch.cat(tensors), *states)


def choose_streams(mask: Tensor, chosen: Any, others: Any) -> Any:  # noqa: ANN401
    """Return the streams of `mask`, bool [N], as in `chosen`, and the others as in `others`.

    Raises: ValueError if the mask is another, or the states are of different sizes.
    """
    _check_alike("streams", chosen, others)
    num_streams = max((x.shape[0] for x in tensors_of(others)), default=0)
    if mask.dtype != torch.bool or mask.shape != (num_streams,):
        raise ValueError(
            f"streams: expected a mask, bool [{num_streams}], got {mask.dtype} {list(mask.shape)}"
        )

    for x in tensors_of(chosen):
        if x.shape[0] != num_streams:
            raise ValueError(
                f"streams: expected states of as many streams, got {x.shape[0]} and {num_streams}"
            )

    def choose(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(mask.view(-1, *[1] * (x.dim() - 1)), x, y)

    return map_state(choose, chosen, others)


def reset_streams(state: Any, initial: Any, mask: Tensor) -> Any:  # noqa: ANN401
    """Return `state` with the streams of `mask`, bool [N], as in `initial`, of N streams too.

    Raises: as `choose_streams`.
    """
    return choose_streams(mask, initial, state)


def _check_alike(who: str, *states: Any) -> None:  # noqa: ANN401
    """Raise ValueError if states differ in more than their streams."""
    shapes = [[list(x.shape[1:]) for x in tensors_of(state)] for state in states]
    if any(other != shapes[0] for other in shapes):
        raise ValueError(
            f"{who}: expected states of one size but for their streams, got tensors of {shapes}; "
            "those that grow with the steps seen are of one size after as many"
        )
