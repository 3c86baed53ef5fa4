"""Keeps the rows of distances that a layer has computed, until what made them changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence


class _OptimizerSteps:
    """Count the steps of all optimisers: fused ones write weights without autograd's counting."""

    def __init__(self) -> None:
        self.count = 0
        register_optimizer_step_post_hook(self._add)

    def _add(self, *_: object) -> None:
        self.count += 1


_optimizer_steps = _OptimizerSteps()


class _Held(NamedTuple):
    key: Hashable
    first: int
    last: int
    rows: Tensor
    weights: list[Tensor]
    """Views of the weights: while they are held, no other tensor can have the same address."""


class PositionCache:
    """Hold rows for consecutive distances; more than asked for, so that steps find the next.

    Copies and pickles begin empty. Nothing is held where a graph is traced.
    """

    def __init__(self) -> None:
        self._held: _Held | None = None

    def rows(
        self,
        first: int,
        last: int,
        make: Callable[[int, int], Tensor],
        *,
        weights: Sequence[Tensor] = (),
        settings: Hashable = None,
    ) -> Tensor:
        """Return the rows of the distances from `first` to `last`, [last - first + 1, ...].

        make: computes rows of such distances, without gradients.
        weights, settings: what they depend on besides.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            return make(first, last)
        held = self._held
        key = (settings, _optimizer_steps.count, *(_version(weight) for weight in weights))
        if held is None or held.key != key or first < held.first or last > held.last:
            begin, end = -_roomy(-first), _roomy(last)
            with torch.inference_mode(mode=False), torch.no_grad():
                views = [weight.detach() for weight in weights]
                held = _Held(key, begin, end, make(begin, end), views)
            self._held = held
        return held.rows[first - held.first : last - held.first + 1]

    def clear(self) -> None:
        """Forget everything."""
        self._held = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


def _roomy(distance: int) -> int:
    """Return the next power of two, so that growing by single steps is rarely needed."""
    return distance if distance <= 0 else 1 << (distance - 1).bit_length()


def _version(weight: Tensor) -> Hashable:
    """Return what differs after any change of a weight that autograd counts, or a move."""
    version = None if weight.is_inference() else weight._version  # noqa: SLF001  no public way
    return weight.data_ptr(), version, weight.dtype, weight.device
