"""One case measured on one number of threads, in every form that the report shows."""

from dataclasses import dataclass

from attn_ops.benchmark.case import Case, Peaks
from attn_ops.benchmark.ceilings import Ceilings
from attn_ops.benchmark.check import Error
from attn_ops.benchmark.measure import Timing


@dataclass(frozen=True)
class Result:
    """A case's timings; both None if the result was wrong, which is then all there is to say."""

    case: Case
    threads: int
    ceilings: Ceilings
    error: Error
    ours: Timing | None
    baseline: Timing | None
    """Of what `case.baseline` names."""
    peaks: Peaks | None = None

    @property
    def speedup(self) -> float | None:
        """Return how many times as fast as the baseline."""
        if self.ours is None or self.baseline is None:
            return None
        return self.baseline.median / self.ours.median

    @property
    def rate(self) -> float | None:
        """Return our FLOP/s, or bytes/s where reading bounds the case; None where nothing does."""
        if self.ours is None or self.case.limit is None:
            return None
        return self.case.work / self.ours.median

    @property
    def share(self) -> float | None:
        """Return our part of the ceiling, from 0 to 1."""
        return self._share_of(self.ours)

    @property
    def baseline_share(self) -> float | None:
        """Return the baseline's part of the ceiling."""
        return self._share_of(self.baseline)

    @property
    def meets_target(self) -> bool | None:
        """Return whether every aim is reached; None where none applies: they are for one thread."""
        if self.threads != 1:
            return None
        target = self.case.target
        reached = [
            got is not None and got >= aim
            for got, aim in ((self.speedup, target.speedup), (self.share, target.share))
            if aim is not None
        ]
        if target.memory is not None:
            reached.append(self.peaks is not None and self.peaks.share <= target.memory)
        return all(reached) if reached else None

    def _share_of(self, timing: Timing | None) -> float | None:
        ceiling = self.ceilings.of(self.case.limit)
        if timing is None or ceiling is None or self.case.compares_threads:
            return None
        return self.case.work / timing.median / ceiling
