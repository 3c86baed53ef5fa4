"""Calls under sequences, pages, blocks and numbers per head, and the library's results on them."""

import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from attn_ops import _autograd
from attn_ops.mask import (
    ANCHOR_BOTTOM_RIGHT,
    Band,
    Blocks,
    Dropout,
    MaskSpec,
    Pages,
    Relative,
    Sequences,
)
from reference import mask_spec
from reference.spec_attention import Call

HQ, HKV, K, KV = 4, 2, 24, 40
Q_LENGTHS = (3, 0, 150, 1, 40, 7)
K_LENGTHS = (40, 5, 133, 0, 300, 70)
MQ, MKV = 2 + sum(Q_LENGTHS) + 3, 560
"""Two rows before the first sequence, three after the last."""
PAGE_SIZE = 16


def integers(values: list[int]) -> Tensor:
    """Return int32 numbers."""
    return torch.tensor(values, dtype=torch.int32)


def starts(lengths: tuple[int, ...], first: int) -> Tensor:
    """Return where sequences of these lengths begin, one after the other, and end."""
    return integers(list(accumulate(lengths, initial=first)))


def packed() -> MaskSpec:
    """Return sequences side by side."""
    return MaskSpec(sequences=Sequences(starts(Q_LENGTHS, 2), starts(K_LENGTHS, 1)))


def overlapping() -> MaskSpec:
    """Return key ranges with gaps that share keys."""
    k_start = integers([500, 0, 100, 560, 40, 300])
    lengths = Sequences(starts(Q_LENGTHS, 2), k_start, integers(list(K_LENGTHS)), 150, 300)
    return MaskSpec(sequences=lengths)


def paged() -> MaskSpec:
    """Return shuffled pages, some of them shared, and one that nobody reads."""
    order = torch.Generator().manual_seed(5)
    pages = torch.randperm(MKV // PAGE_SIZE - 1, generator=order)[: -(-320 // PAGE_SIZE)]
    table = torch.stack([pages.roll(shift) for shift in range(len(Q_LENGTHS))]).int()
    k_start = integers([0, 7, 16, 0, 3, 100])
    sequences = Sequences(starts(Q_LENGTHS, 2), k_start, integers(list(K_LENGTHS)), 0, 0)
    return MaskSpec(sequences=sequences, pages=Pages(table, PAGE_SIZE))


def blocks(size: int = 16, heads: int = HQ) -> MaskSpec:
    """Return random lists of blocks, some empty."""
    draw = torch.Generator().manual_seed(size)
    rows, columns = -(-MQ // size), -(-MKV // size)
    seen = torch.rand(heads, rows, columns, generator=draw) < 0.3
    seen[:, 1] = False
    counts = seen.sum(-1).flatten().cumsum(0)
    first = torch.cat([torch.zeros(1, dtype=torch.int64), counts])
    offsets = torch.stack([first[h * rows : (h + 1) * rows + 1] for h in range(heads)])
    return MaskSpec(blocks=Blocks(offsets.int(), seen.nonzero()[:, 2].int(), size))


PLACES: dict[str, Callable[[], MaskSpec]] = {
    "whole": MaskSpec,
    "packed": packed,
    "overlapping": overlapping,
    "paged": paged,
    "blocks": blocks,
    "shared_blocks_of_5": lambda: blocks(5, 1),
}

BAND = Band(left=60, right=9, anchor=ANCHOR_BOTTOM_RIGHT)
PARTS = ("plain", "causal", "relative", "sink", "softcap", "dropout", "bias", "all")


def make(place: str, part: str, dtype: torch.dtype) -> Call:
    """Return the call of this name: the same on every run and every machine."""
    draw = torch.Generator().manual_seed(zlib.crc32(f"{place}-{part}-{dtype}".encode()))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    spec = PLACES[place]()
    extra: dict[str, object] = {}
    if part == "causal":
        extra["band"] = Band(right=0, anchor=ANCHOR_BOTTOM_RIGHT)
    if part == "all":
        extra["band"] = BAND
    if part in ("relative", "all"):
        slopes = torch.rand(HQ, generator=draw).div(16).to(dtype)
        extra["relative"] = Relative(slopes, normal(HQ, 2 * 25 + 1))
    if part in ("sink", "all"):
        extra["sink"] = normal(HQ)
    if part in ("softcap", "all"):
        extra["softcap"] = 2.5
    if part in ("dropout", "all"):
        extra["dropout"] = Dropout(0.3, torch.tensor([1234567890123, 17]))
    if part in ("bias", "all"):
        extra["bias"] = normal(1, 1, MQ, MKV)
    lse_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return Call(
        query=normal(1, MQ, HQ, K),
        key=normal(1, MKV, HKV, K),
        value=normal(1, MKV, HKV, KV),
        spec=MaskSpec(**{**vars(spec), **extra}),
        scale=K**-0.5,
        grad_out=normal(1, MQ, HQ, KV),
        grad_lse=torch.randn(1, HQ, MQ, generator=draw).to(lse_dtype),
    )


def poisoned(call: Call, canary: float) -> Call:
    """Return the call with `canary` in every key and value that no query sees."""
    seen = mask_spec.allowed(call.spec, 1, HQ, MQ, MKV).any(2).view(HKV, -1, MKV)
    unseen = ~seen.any(1).mT[None, :, :, None]
    return replace(
        call,
        key=call.key.masked_fill(unseen, canary),
        value=call.value.masked_fill(unseen, canary),
    )


def run(call: Call) -> dict[str, Tensor]:
    """Return out, lse and every gradient that the library computes."""
    ours, leaves = call.leaves()
    out, lse = _autograd.attend_with_lse(
        ours.query, ours.key, ours.value, ours.spec, ours.scale, None
    )
    gradients = torch.autograd.grad(
        [out, lse], list(leaves.values()), [call.grad_out, call.grad_lse]
    )
    named = {f"grad_{name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {"out": out.detach(), "lse": lse.detach(), **named}
