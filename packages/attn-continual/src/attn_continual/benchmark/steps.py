"""Steps of `SingleOutputMultiheadAttention`: against rolling, chunks, and early steps."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attn_continual.benchmark.rolling import RollingAttention
from attn_continual.single_output import SingleOutputMultiheadAttention
from attn_ops.benchmark.case import NO_TARGET, Contender, Contest, Target
from attn_ops.benchmark.check import compare

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

_CHECKED_STEPS = 3
_SMALL_WINDOW = 16
_CHUNK = 1024
_LATE = 100_000


@dataclass(frozen=True)
class LayerCase:
    """A layer of `heads` heads over float32 streams whose window is full, without gradients."""

    streams: int
    width: int
    window: int
    heads: int = 8
    target: Target = NO_TARGET

    dtype = torch.float32
    limit = None
    work = 0.0
    compares_threads = False

    @property
    def sizes(self) -> str:
        """Return the numbers that set this case apart."""
        return f"N{self.streams} E{self.width} H{self.heads} window {self.window}"

    def shrunk(self) -> Self:
        """Return the same case without a target, small enough to try everything in seconds."""
        return replace(self, window=_SMALL_WINDOW, target=NO_TARGET)

    def make_layer(self) -> SingleOutputMultiheadAttention:
        """Return the layer, without a state."""
        torch.manual_seed(0)
        layer = SingleOutputMultiheadAttention(self.width, self.heads, sequence_len=self.window)
        return layer.eval()

    def draw(self, steps: int, seed: int = 0) -> Tensor:
        """Return steps [N, T, E]."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.streams, steps, self.width, generator=generator)


@dataclass(frozen=True)
class StepCase(LayerCase):
    """One step, projections and all, against the same with rolled memories."""

    baseline = "rolling in torch"

    @property
    def name(self) -> str:
        """Return what sets this case apart."""
        return f"step {self.sizes}"

    def prepare(self) -> Contest:
        """Fill the windows, check some steps, and bind one more of each."""
        layer, history = self.make_layer(), self.draw(self.window)
        rolling = RollingAttention(layer, self.window)
        exact = RollingAttention(copy.deepcopy(layer).double(), self.window)
        with torch.no_grad():
            layer.forward_steps(history)
            rolling.fill(history)
            exact.fill(history.double())
            errors = [
                compare([_step(layer, x)], [exact.step(x.double())], [rolling.step(x)], factor=10)
                for x in self.draw(_CHECKED_STEPS, seed=1).unbind(1)
            ]
        x = self.draw(1, seed=2)[:, 0]
        return Contest(
            Contender(_without_gradients(partial(layer.forward_step, x))),
            Contender(_without_gradients(partial(rolling.step, x))),
            max(errors, key=lambda error: error.largest - error.allowed),
        )


@dataclass(frozen=True)
class ChunkCase(LayerCase):
    """A chunk of 1024 steps in one call, against as many calls of one step."""

    chunk: int = _CHUNK

    baseline = "single steps"

    @property
    def name(self) -> str:
        """Return what sets this case apart."""
        return f"chunk of {self.chunk} {self.sizes}"

    def shrunk(self) -> Self:
        """Return the same case without a target, small enough to try everything in seconds."""
        return replace(super().shrunk(), chunk=2 * _SMALL_WINDOW)

    def prepare(self) -> Contest:
        """Check that both ways agree, and bind a chunk and its steps."""
        whole, history = self.make_layer(), self.draw(self.window)
        with torch.no_grad():
            whole.forward_steps(history)
            stepped, exact = copy.deepcopy(whole), copy.deepcopy(whole).double()
            chunk = self.draw(self.chunk, seed=1)
            rows = chunk.unbind(1)
            results = [whole.forward_steps(chunk), exact.forward_steps(chunk.double())]
            ours, truth = (x for x in results if x is not None)
            by_steps = torch.stack([_step(stepped, row) for row in rows], dim=1)

        def take_steps() -> None:
            for row in rows:
                stepped.forward_step(row)

        return Contest(
            Contender(_without_gradients(partial(whole.forward_steps, chunk))),
            Contender(_without_gradients(take_steps)),
            compare([ours], [truth], [by_steps], factor=10),
        )


@dataclass(frozen=True)
class AgeCase(LayerCase):
    """A step of a stream that has seen 100 000, against one whose window has just filled."""

    late: int = _LATE

    baseline = "an early step"

    @property
    def name(self) -> str:
        """Return what sets this case apart."""
        return f"step {self.late} {self.sizes}"

    def shrunk(self) -> Self:
        """Return the same case without a target, small enough to try everything in seconds."""
        return replace(super().shrunk(), late=100)

    def prepare(self) -> Contest:
        """Take all the steps, one by one, check that none is forgotten or drifts, and bind one."""
        early, late, window = self.make_layer(), self.make_layer(), self.draw(self.window)
        with torch.no_grad():
            for x in self.draw(1, seed=1).expand(-1, self.late, -1).unbind(1):
                late.forward_step(x)
            for x in window.unbind(1):
                late.forward_step(x)
                early.forward_step(x)
            x = self.draw(1, seed=2)[:, 0]
            rolling = RollingAttention(early, self.window)
            exact = RollingAttention(copy.deepcopy(early).double(), self.window)
            rolling.fill(window)
            exact.fill(window.double())
            truth, plain = exact.step(x.double()), rolling.step(x)
            error = compare([_step(late, x), _step(early, x)], [truth] * 2, [plain] * 2, factor=10)
        return Contest(
            Contender(_without_gradients(partial(late.forward_step, x))),
            Contender(_without_gradients(partial(early.forward_step, x))),
            error,
        )


def _step(layer: SingleOutputMultiheadAttention, x: Tensor) -> Tensor:
    out = layer.forward_step(x)
    return torch.full_like(x, torch.nan) if out is None else out  # no output: far off


def _without_gradients(call: Callable[[], object]) -> Callable[[], object]:
    return torch.no_grad()(call)
