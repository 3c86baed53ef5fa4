"""The machine's own limits, which no attention can pass: arithmetic and memory."""

from dataclasses import dataclass

from attn_ops import _native
from attn_ops.benchmark.case import Limit

_SLICES = 5


@dataclass(frozen=True)
class Ceilings:
    """What `threads` threads reach together."""

    threads: int
    float32: float
    """FLOP/s of multiply-adds."""
    bfloat16: float | None
    """FLOP/s of dot products of bfloat16 pairs, summed in float32; None without such a unit."""
    read: float
    """Bytes/s read from memory."""

    def of(self, limit: Limit | None) -> float | None:
        """Return one of them; without a bfloat16 unit, float32's bounds bfloat16."""
        if limit == "read":
            return self.read
        if limit == "bfloat16":
            return self.bfloat16 or self.float32
        return None if limit is None else self.float32


def measure_ceilings(threads: int, seconds: float) -> Ceilings:
    """Return the best of several slices of `seconds` each: whatever else runs can only slow one."""
    bfloat16 = [_native.bfloat16_ceiling(threads, seconds) for _ in range(_SLICES)]
    return Ceilings(
        threads,
        float32=max(_native.float32_ceiling(threads, seconds) for _ in range(_SLICES)),
        bfloat16=max((rate for rate in bfloat16 if rate is not None), default=None),
        read=max(_native.read_ceiling(threads, seconds) for _ in range(_SLICES)),
    )
