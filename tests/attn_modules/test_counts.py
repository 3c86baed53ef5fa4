"""Counts that constructors take."""

import re

import pytest
import torch

from attn_modules import (
    FavorAttention,
    GlobalAttention,
    LinformerAttention,
    LocalAttention,
    build_attention,
)


@pytest.mark.parametrize(
    "build",
    [
        lambda: LinformerAttention(0.0, None),
        lambda: LinformerAttention(0.0, 8, 2.0),
        lambda: FavorAttention(dim_features=8.0),
        lambda: LocalAttention(window_size=5.0),
    ],
)
def test_mechanisms_refuse_other_counts_at_construction(build):
    with pytest.raises(ValueError, match="an int of 1 or more, got"):
        build()


@pytest.mark.parametrize("count", [0, 2.5, float("nan"), "x"])
@pytest.mark.parametrize(
    ("name", "field", "others"),
    [
        ("random", "block_size", {}),
        ("big_bird", "block_size", {}),
        ("big_bird", "num_heads", {}),
        ("blocksparse", "block_size", {"layout": torch.ones(2, 2)}),
        ("blocksparse", "num_heads", {"layout": torch.ones(2, 2)}),
        ("nystrom", "num_heads", {}),
        ("nystrom", "num_landmarks", {"num_heads": 2}),
        ("nystrom", "inv_iterations", {"num_heads": 2}),
        ("nystrom", "conv_kernel_size", {"num_heads": 2}),
        ("orthoformer", "num_landmarks", {}),
        ("pooling", "pool_size", {}),
        ("pooling", "stride", {}),
        ("visual", "dim_model", {}),
        ("compositional", "dim_selection", {"dim_model": 8, "num_heads": 2}),
        ("compositional", "dim_model", {"num_heads": 2}),
        ("compositional", "num_heads", {"dim_model": 8}),
        ("compositional", "num_rules", {"dim_model": 8, "num_heads": 2}),
        ("lambda", "seq_len", {"dim_head": 4}),
        ("lambda", "dim_head", {"seq_len": 4}),
    ],
)
def test_what_is_no_count_is_refused_by_its_name(name, field, others, count):
    message = f"expected {field}, an int of 1 or more, got {count!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        build_attention({"name": name, field: count, **others})


@pytest.mark.parametrize("mask", [[True, False], 3, "x"])
def test_global_tokens_are_a_tensor(mask):
    with pytest.raises(TypeError, match="attention_query_mask, a bool tensor"):
        GlobalAttention(0.0, mask)
