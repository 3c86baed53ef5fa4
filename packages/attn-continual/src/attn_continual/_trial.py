"""A module on trial by `verify_contract`: ways to run it over a sequence, and claims about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from attn_continual.streams import tensors_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attn_continual.continual_module import ContinualModule


@dataclass(frozen=True)
class Claim:
    """Says which promise a module breaks."""

    name: str
    tolerance: float

    def broken(self, promise: str) -> AssertionError:
        return AssertionError(f"{self.name} breaks a promise: {promise}")

    def holds(self, promise: str, kept: object) -> None:
        if not kept:
            raise self.broken(promise)

    def close(
        self,
        promise: str,
        got: Tensor | None,
        expected: Tensor | None,
        size: float | None = None,
        besides: float = 0.0,
    ) -> None:
        """Hold `got` to `expected`; outputs that there are not are None.

        size: what differences are measured by; default: the largest number of `expected`.
        besides: how much they may differ in any case.
        """
        shapes = [None if t is None else list(t.shape) for t in (got, expected)]
        self.holds(f"{promise}; got {shapes[0]}, expected {shapes[1]}", shapes[0] == shapes[1])
        if got is None or expected is None or got.numel() == 0:
            return
        size = expected.abs().max().item() if size is None else size
        size = max(size, torch.finfo(expected.dtype).tiny)
        error = (got.double() - expected.double()).abs().max().item() / size
        allowed = self.tolerance + besides / size
        self.holds(
            f"{promise}; they differ by {error:.2g} of their size, more than {allowed:.2g}",
            error <= allowed,
        )

    def same(self, promise: str, got: Any, expected: Any) -> None:  # noqa: ANN401  states
        pairs = zip(tensors_of(got), tensors_of(expected), strict=True)
        self.holds(promise, all(torch.equal(a, b) for a, b in pairs))


class Run(NamedTuple):
    """What functional steps gave."""

    outs: Tensor
    """[N, T, ...]"""
    state: Any
    valid: Tensor
    """bool [N, T]"""


@dataclass(frozen=True)
class Trial:
    """A module and inputs for it; tensors here are [N, T, ...], whatever the module's layout."""

    module: ContinualModule
    x: Tensor

    @property
    def num_streams(self) -> int:
        return self.x.shape[0]

    @property
    def num_steps(self) -> int:
        return self.x.shape[1]

    def initial_state(self, num_streams: int) -> Any:  # noqa: ANN401
        return self.module.initial_state(num_streams, device=self.x.device, dtype=self.x.dtype)

    def from_module(self, out: Tensor) -> Tensor:
        return out.movedim((self.module.output_stream_axis, self.module.time_axis), (0, 1))

    def from_step(self, out: Tensor) -> Tensor:
        return self.from_module(out.unsqueeze(self.module.time_axis))

    def to_module(self, x: Tensor) -> Tensor:
        return x.movedim((0, 1), (self.module.stream_axis, self.module.time_axis))

    def forward_steps(
        self, x: Tensor, *, pad_end: bool = False, update_state: bool = True
    ) -> Tensor | None:
        x = self.to_module(x)
        out = self.module.forward_steps(x, pad_end=pad_end, update_state=update_state)
        return None if out is None else self.from_module(out)

    def forward_step(self, row: Tensor) -> Tensor | None:
        """Return the output of a step's inputs [N, ...] as that of a chunk, [N, 1, ...]."""
        out = self.module.forward_step(row)
        return None if out is None else self.from_step(out)

    def forward_single_steps(self, x: Tensor) -> Tensor | None:
        return joined([self.forward_step(row) for row in x.unbind(1)])

    def whole(self) -> Tensor:
        """Return the outputs of the whole sequence, from the first step on."""
        self.module.clean_state()
        out = self.forward_steps(self.x)
        self.module.clean_state()
        assert out is not None  # noqa: S101  the first check has seen it
        return out

    def step_by_step(self, x: Tensor, state: Any, *, in_place: bool = False) -> Run:  # noqa: ANN401
        """Run functional steps over x [N, T, ...]."""
        outs, valids = [], []
        for row in x.unbind(1):
            out, state, valid = self.module.step(row, state, in_place=in_place)
            outs.append(self.from_step(out))
            valids.append(valid)
        return Run(torch.cat(outs, 1), state, torch.stack(valids, 1))

    def chunk(self, x: Tensor, state: Any, active: Tensor | None = None) -> Run:  # noqa: ANN401
        """Run the functional chunk; active: bool [N]."""
        out, state, valid = self.module.steps(self.to_module(x), state, active=active)
        return Run(self.from_module(out), state, valid)


def joined(outs: Sequence[Tensor | None]) -> Tensor | None:
    """Return the outputs that there are, one after the other, or None."""
    present = [out for out in outs if out is not None]
    return torch.cat(present, 1) if present else None
