"""Masks of blocks against those of the dense patterns they stand for."""

import pytest
import torch

from allocated_elements import AllocatedElements
from attn_modules import patterns

GLOBAL = torch.arange(30) % 13 == 4

PAIRS = {
    "local": (patterns.local_1d_pattern, patterns.local_1d_block_mask, (30, 7)),
    "local-own": (patterns.local_1d_pattern, patterns.local_1d_block_mask, (30, 1)),
    "local-all": (patterns.local_1d_pattern, patterns.local_1d_block_mask, (30, 101)),
    "dilated": (
        lambda n, w: patterns.dilated_1d_pattern(n, w, 3),
        lambda n, w, b: patterns.dilated_1d_block_mask(n, w, b, 3),
        (30, 5),
    ),
    "global": (patterns.global_token_pattern, patterns.global_token_block_mask, (GLOBAL,)),
    "no-global": (
        patterns.global_token_pattern,
        patterns.global_token_block_mask,
        (torch.zeros(30, dtype=torch.bool),),
    ),
    "local-2d": (patterns.local_2d_pattern, patterns.local_2d_block_mask, (5, 6, 2)),
    "local-2d-far": (patterns.local_2d_pattern, patterns.local_2d_block_mask, (3, 10, 4.5)),
    "axial": (patterns.axial_2d_pattern, patterns.axial_2d_block_mask, (5, 6)),
    "dilated-2d": (patterns.dilated_2d_pattern, patterns.dilated_2d_block_mask, (5, 6)),
    "swin": (patterns.swin_attention_pattern, patterns.swin_block_mask, (6, 9, 3)),
    "alibi": (
        lambda heads, n: patterns.alibi_pattern(0.9, (heads, n, n)),
        lambda heads, n, b: patterns.alibi_block_mask(0.9, heads, n, b),
        (6, 30),
    ),
}


def assert_same(mask, expected):
    assert torch.equal(mask.offsets, expected.offsets)
    assert torch.equal(mask.indices, expected.indices)
    assert (mask.block_size, mask.causal) == (expected.block_size, expected.causal)


@pytest.mark.parametrize("block_size", [1, 3, 4, 64])
@pytest.mark.parametrize("name", PAIRS)
def test_mask_covers_the_dense_pattern(name, block_size):
    dense, blocks, arguments = PAIRS[name]
    expected = patterns.to_block_mask(dense(*arguments), block_size, covering=True)
    assert_same(blocks(*arguments, block_size), expected)


@pytest.mark.parametrize("distance", [-1.0, 0.0, torch.inf])
def test_distances_that_show_nothing_or_everything(distance):
    dense = patterns.local_2d_pattern(3, 4, distance)
    assert dense.all() == (distance > 0)
    assert_same(
        patterns.local_2d_block_mask(3, 4, distance, 5),
        patterns.to_block_mask(dense, 5, covering=True),
    )


@pytest.mark.parametrize(
    "blocks",
    [
        lambda: patterns.local_2d_block_mask(0, 3, 2, 4),
        lambda: patterns.axial_2d_block_mask(0, 3, 4),
        lambda: patterns.dilated_2d_block_mask(0, 3, 4),
        lambda: patterns.swin_block_mask(0, 6, 3, 4),
    ],
    ids=["local-2d", "axial", "dilated-2d", "swin"],
)
def test_images_without_pixels(blocks):
    mask = blocks()
    assert mask.offsets.tolist() == [[0]]
    assert len(mask.indices) == 0


@pytest.mark.parametrize("shift_size", [0, 2])
def test_shifted_swin_windows_are_whole_blocks(shift_size):
    dense = patterns.swin_attention_pattern(8, 12, 4, shift_size)
    mask = patterns.swin_block_mask(8, 12, 4, 2, shift_size)
    assert_same(mask, patterns.to_block_mask(dense, 2))


@pytest.mark.parametrize("block_size", [1, 4, 7])
def test_causal_blocks_hide_what_is_later_within_a_block(block_size):
    mask = patterns.causal_1d_block_mask(30, block_size)
    assert_same(
        mask, patterns.to_block_mask(patterns.causal_1d_pattern(30), block_size, causal=True)
    )
    assert torch.equal(mask.materialize((30, 30)) == 0, patterns.causal_1d_pattern(30))


@pytest.mark.parametrize(("threshold", "blocks_seen"), [(-1.0, 0), (0.0, 0), (torch.inf, 8)])
def test_thresholds_of_alibi_that_hide_or_show_everything(threshold, blocks_seen):
    mask = patterns.alibi_block_mask(threshold, 2, 8, 4)
    assert_same(mask, patterns.to_block_mask(patterns.alibi_pattern(threshold, (2, 8, 8)), 4))
    assert len(mask.indices) == blocks_seen


def test_random_blocks_are_so_many_for_each_head():
    mask = patterns.random_block_mask(30, 3, 4, num_heads=2, seed=9)
    layout = patterns.mask_to_layout(mask, 8)
    assert torch.equal(layout.sum(2), torch.full((2, 8), 3))
    assert not torch.equal(layout[0], layout[1])
    assert mask.density == 3 / 8


@pytest.mark.parametrize(
    "make",
    [
        lambda: patterns.local_1d_block_mask(4096, 65, 16),
        lambda: patterns.dilated_1d_block_mask(4096, 9, 16),
        lambda: patterns.global_token_block_mask(torch.arange(4096) < 20, 16),
        lambda: patterns.random_block_mask(4096, 4, 16),
        lambda: patterns.local_2d_block_mask(64, 64, 4, 16),
        lambda: patterns.axial_2d_block_mask(64, 64, 16),
        lambda: patterns.swin_block_mask(64, 64, 8, 8),
        lambda: patterns.dilated_2d_block_mask(64, 64, 16),
        lambda: patterns.alibi_block_mask(1, 8, 4096, 16),
    ],
    ids=[
        "local",
        "dilated",
        "global",
        "random",
        "local-2d",
        "axial",
        "swin",
        "dilated-2d",
        "alibi",
    ],
)
def test_no_matrix_of_queries_by_keys_is_made(make):
    with AllocatedElements() as allocated:
        make()
    assert 0 < allocated.largest < 4096 * 4096 // 16


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="block_size of 1 or more"):
        patterns.local_1d_block_mask(30, 7, 0)
    with pytest.raises(ValueError, match="odd window_size"):
        patterns.local_1d_block_mask(30, 6, 4)
    with pytest.raises(ValueError, match="odd window_size"):
        patterns.dilated_1d_block_mask(30, 6, 4)
    with pytest.raises(ValueError, match="a norm p of 1 or more"):
        patterns.local_2d_block_mask(5, 6, 2, 4, p=0)
    with pytest.raises(ValueError, match="a bool tensor"):
        patterns.global_token_block_mask(torch.ones(4), 4)
