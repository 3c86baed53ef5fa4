"""What is measured, with its aims: steps, chunks of them, long streams, relative positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attn_continual.benchmark.positions import RelativeAttentionCase, RelPosCase
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

_TWICE_IN_A_TENTH = Target(speedup=2.0, memory=0.1)
_POSITIONS = (
    RelPosCase(rows=2048, width=512, target=_TWICE_IN_A_TENTH),
    RelPosCase(rows=2048, width=512, is_causal=True, target=_TWICE_IN_A_TENTH),
    RelativeAttentionCase(rows=1024, width=512, target=_TWICE_IN_A_TENTH),
    RelativeAttentionCase(rows=1024, width=512, keeps_logits=False, target=_TWICE_IN_A_TENTH),
    RelativeAttentionCase(rows=1024, width=512, coordinates=2, target=_TWICE_IN_A_TENTH),
)

CASES: Sequence[Case] = (*_STEPS, *_CHUNKS, *_AGES, *_POSITIONS)
