"""What is measured: the mechanisms, and what their times are to be."""

from __future__ import annotations

from typing import Any

import torch

from attn_modules.benchmark.contests import FavorContest, WindowContest
from attn_modules.benchmark.growth import WIDTH, GrowthCase, Options

_LINEAR = 1.1
_GLOBAL_TOKENS = 16


def _always(**options: bool | float) -> Options:
    return lambda _: options


def _global_tokens(rows: int) -> dict[str, Any]:
    step = max(rows // _GLOBAL_TOKENS, 1)
    return {"attention_query_mask": torch.arange(rows).remainder(step).eq(0)}


GROWTH_CASES = (
    GrowthCase("scaled_dot_product", _always()),
    GrowthCase("local", _always(window_size=257), "257", aim=_LINEAR),
    GrowthCase("local", _always(window_size=256, causal=True), "256 causal", aim=_LINEAR),
    GrowthCase("global", _global_tokens, f"{_GLOBAL_TOKENS} tokens", aim=_LINEAR),
    GrowthCase("big_bird", _always(), "blocks of 64", aim=_LINEAR),
    GrowthCase("random", _always(r=0.05, block_size=64), "5 %, blocks of 64"),
    GrowthCase("linformer", lambda rows: {"seq_len": rows, "k": 256}, "256", aim=_LINEAR),
    GrowthCase("nystrom", _always(num_heads=1, num_landmarks=64), "64", aim=_LINEAR),
    GrowthCase("orthoformer", _always(num_landmarks=32), "32", aim=_LINEAR),
    GrowthCase("favor", _always(dim_head=WIDTH), "", aim=_LINEAR),
    GrowthCase("favor", _always(dim_head=WIDTH, causal=True), "causal", aim=_LINEAR),
    GrowthCase("linear", _always(), "", aim=_LINEAR),
    GrowthCase("linear", _always(causal=True), "causal", aim=_LINEAR),
    GrowthCase("fourier_mix", _always()),
    GrowthCase("lambda", lambda rows: {"seq_len": rows, "dim_head": WIDTH}),
    GrowthCase("pooling", _always()),
    GrowthCase("visual", _always(dim_model=WIDTH)),
    GrowthCase("compositional", _always(dim_model=WIDTH, num_heads=1)),
)

CONTESTS = (
    WindowContest("SDPA, full", aim=25.0),
    WindowContest("blocks in torch", aim=5.0),
    FavorContest("chunks in torch", aim=3.0),
    FavorContest("their products alone", aim=1 / 1.2),
)
"""Favor is to reach one of its two aims: no sum over chunks is faster than its products."""
