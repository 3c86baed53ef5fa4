"""What every case of the benchmark offers: its name, its work, its aim, and calls to time."""

from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass
from itertools import cycle
from typing import Any, ClassVar, Literal, Protocol

from torch import dtype

from attn_ops.benchmark.check import Error

Limit = Literal["float32", "bfloat16", "read"]
"""What a machine can do at most: multiply-adds, dot products, or reading memory."""

Call = Callable[[], object]
"""A call with its arguments bound, so that nothing else is timed: a view costs as much as a small
attention."""

_BYTES_BEYOND_CACHES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Target:
    """What to reach on one thread, at least if not said otherwise; None where there is no aim."""

    speedup: float | None = None
    """Times as fast as the baseline."""
    share: float | None = None
    """Of the ceiling, from 0 to 1."""
    memory: float | None = None
    """The most memory at the peak, as a share of the baseline's."""


NO_TARGET = Target()


@dataclass(frozen=True)
class Contender:
    """One way to do a case's work."""

    run: Callable[[], object]
    threads: int | None = None
    """How many threads it runs on, if not those of the measurement."""


@dataclass(frozen=True)
class Peaks:
    """The memory of both at their peaks, in bytes, beyond what they are given and return."""

    ours: int
    baseline: int

    @property
    def share(self) -> float:
        """Return ours as a share of the baseline's."""
        return self.ours / max(self.baseline, 1)


@dataclass(frozen=True)
class Contest:
    """A case ready to be timed."""

    ours: Contender
    baseline: Contender
    error: Error
    """Of ours; if it is not small, there is nothing to time."""
    measure_peaks: Callable[[], Peaks] | None = None
    """On one thread; None where memory is not compared."""


class Case(Protocol):
    """Frozen dataclasses of numbers and words satisfy this; JSON holds all their fields."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def dtype(self) -> dtype:
        """Return that of the inputs."""
        ...

    @property
    def target(self) -> Target:
        """Return the least to reach."""
        ...

    @property
    def name(self) -> str:
        """Return what sets this case apart."""
        ...

    @property
    def baseline(self) -> str:
        """Return what ours is compared with."""
        ...

    @property
    def limit(self) -> Limit | None:
        """Return the ceiling that bounds this case."""
        ...

    @property
    def work(self) -> float:
        """Return what the ceiling counts: bytes, or floating-point operations."""
        ...

    @property
    def compares_threads(self) -> bool:
        """Return whether it sets numbers of threads itself: then no one ceiling bounds it."""
        ...

    def shrunk(self) -> "Case":
        """Return the same case without a target, small enough to try everything in seconds."""
        ...

    def prepare(self) -> Contest:
        """Make random inputs, check the result that ours gives, and bind the calls."""
        ...


def word(of: dtype) -> str:
    """Return the name of a dtype in names of cases."""
    return str(of).removeprefix("torch.")


def beyond_caches(make: Callable[[], Call], bytes_read: int) -> Call:
    """Return a call that takes turns between calls whose inputs no cache holds together.

    `make` binds one call to inputs of its own, of which it reads `bytes_read`.
    """
    return _taking_turns(make() for _ in range(1 + _BYTES_BEYOND_CACHES // bytes_read))


def _taking_turns(calls: Iterable[Call]) -> Call:
    turns = cycle(list(calls))

    def take_turn() -> object:
        return next(turns)()

    return take_turn
