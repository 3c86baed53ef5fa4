"""What is measured, with its aims: single steps, chunks of them, long streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attn_continual.benchmark.steps import AgeCase, ChunkCase, StepCase
from attn_ops.benchmark.case import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attn_ops.benchmark.case import Case

_STEPS = (
    StepCase(streams=1, width=512, window=512, target=Target(speedup=2.2)),
    StepCase(streams=1, width=512, window=2048, target=Target(speedup=3.5)),
    StepCase(streams=8, width=256, window=512, target=Target(speedup=2.5)),
)

# Wide layers spend both ways on the same products, so that the aim is one for narrow ones.
_CHUNKS = (
    ChunkCase(streams=1, width=128, window=64, target=Target(speedup=20.0)),
    ChunkCase(streams=1, width=512, window=512),
)

_AGES = (AgeCase(streams=1, width=64, window=64, target=Target(speedup=0.95)),)

CASES: Sequence[Case] = (*_STEPS, *_CHUNKS, *_AGES)
