"""Mechanisms against what one would write instead, with one thread's aims."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attn_modules import FavorAttention, LocalAttention
from attn_modules.benchmark.plain import (
    attend_by_features,
    attend_in_blocks,
    multiply_as_features_do,
)
from attn_ops.benchmark.case import Call, Contender
from attn_ops.benchmark.check import Error, compare
from attn_ops.benchmark.measure import Timing, time_in_turns

if TYPE_CHECKING:
    from attn_modules import Attention

_CHECKED_ROWS = 512


@dataclass(frozen=True)
class Outcome:
    """A contest's times, or nothing but its error if the result was wrong."""

    contest: Contest
    rows: int
    error: Error
    ours: Timing | None
    theirs: Timing | None

    @property
    def speedup(self) -> float | None:
        """Return how many times as fast as the other."""
        if self.ours is None or self.theirs is None:
            return None
        return self.theirs.median / self.ours.median

    @property
    def meets_aim(self) -> bool | None:
        """Return whether it is as fast as it is to be; None where there is no aim."""
        if self.contest.aim is None:
            return None
        return self.speedup is not None and self.speedup >= self.contest.aim


@dataclass(frozen=True)
class Contest(ABC):
    """A forward of [1, 1, M, 64] in float32, against what `other` says."""

    other: str
    aim: float | None
    """How many times as fast it is to be; None where there is no such aim."""

    @property
    @abstractmethod
    def title(self) -> str:
        """Return what is timed."""

    @abstractmethod
    def mechanism(self) -> Attention:
        """Return ours."""

    @abstractmethod
    def bind_other(self, attention: Attention, operands: list[Tensor]) -> Call:
        """Return the call that ours is compared with."""

    @abstractmethod
    def compute_plainly(self, attention: Attention, operands: list[Tensor]) -> Tensor:
        """Return the result that ours must come near to."""

    def hold(self, rows: int, threads: int, seconds: float) -> Outcome:
        """Check ours over a few rows, and time both in turns."""
        attention = self.mechanism().eval()
        operands = _draw(rows)
        with torch.no_grad():
            error = self._check(attention, [x[:, :, :_CHECKED_ROWS] for x in operands])
            if not error.is_small:
                return Outcome(self, rows, error, None, None)
            calls = partial(attention, *operands), self.bind_other(attention, operands)
            timings = time_in_turns([Contender(call) for call in calls], threads, seconds)
        return Outcome(self, rows, error, *timings)

    def _check(self, attention: Attention, operands: list[Tensor]) -> Error:
        exact = self.compute_plainly(attention, [x.double() for x in operands])
        plain = self.compute_plainly(attention, operands)
        return compare([attention(*operands)], [exact], [plain], factor=10)


@dataclass(frozen=True)
class WindowContest(Contest):
    """Local attention over the last 257 keys."""

    other: Literal["SDPA, full", "blocks in torch"]
    window: int = 256

    @property
    def title(self) -> str:
        """Return what is timed."""
        return f"local {self.window} causal"

    def mechanism(self) -> Attention:
        """Return ours."""
        return LocalAttention(causal=True, window_size=self.window)

    def bind_other(self, attention: Attention, operands: list[Tensor]) -> Call:
        """Return the call that ours is compared with."""
        if self.other == "SDPA, full":
            return partial(scaled_dot_product_attention, *operands)
        return partial(self.compute_plainly, attention, operands)

    def compute_plainly(self, attention: Attention, operands: list[Tensor]) -> Tensor:
        """Return the result that ours must come near to."""
        del attention  # has no state
        return attend_in_blocks(*operands, window=self.window)


@dataclass(frozen=True)
class FavorContest(Contest):
    """Causal attention by random features, with ours for both."""

    other: Literal["chunks in torch", "their products alone"]

    @property
    def title(self) -> str:
        """Return what is timed."""
        return "favor causal"

    def mechanism(self) -> Attention:
        """Return ours."""
        torch.manual_seed(0)
        return FavorAttention(causal=True, dim_head=64, feature_map_type="sm_orf")

    def bind_other(self, attention: Attention, operands: list[Tensor]) -> Call:
        """Return the call that ours is compared with."""
        compute = attend_by_features
        if self.other == "their products alone":
            compute = multiply_as_features_do
        return partial(compute, *operands, projection=_projection(attention, operands))

    def compute_plainly(self, attention: Attention, operands: list[Tensor]) -> Tensor:
        """Return the result that ours must come near to."""
        return attend_by_features(*operands, projection=_projection(attention, operands))


def _projection(attention: Attention, operands: list[Tensor]) -> Tensor:
    """Return the random vectors of a FavorAttention, [K, m], in the operands' dtype."""
    vectors = attention.get_buffer("feature_map.features")
    return vectors.to(operands[0].dtype)


def _draw(rows: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 1, rows, 64, generator=generator) for _ in range(3)]
