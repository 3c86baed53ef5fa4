"""Layouts: their exact blocks, and the way from patterns to masks and back."""

import pytest
import torch

from attn_modules import patterns
from attn_ops.fmha.attn_bias import BlockSparseMask


def rows(*lines):
    """Return a layout [1, blocks, blocks] drawn with # and dots."""
    return torch.tensor([[[int(cell == "#") for cell in line] for line in lines]])


LOCAL_GROUPS = rows(*["####...#"] * 4, *["...#####"] * 4)
SHORT_LAST_GROUP = rows(*["####..#"] * 4, *["...####"] * 3)
FIRST_BLOCK = rows(*["####...."] * 4, *["#...####"] * 4)
LONGFORMER = rows(
    "########",
    "###.....",
    "####....",
    "#.###...",
    "#..###..",
    "#...###.",
    "#....###",
    "#.....##",
)


def random_pattern(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.05


def test_quick_layouts_are_those_of_the_original():
    assert torch.equal(patterns.quick_fixed_layout(2, 16, 128), LOCAL_GROUPS.expand(2, 8, 8))
    assert torch.equal(patterns.quick_fixed_layout(1, 16, 112), SHORT_LAST_GROUP)
    assert torch.equal(patterns.quick_variable_layout(2, 16, 128), FIRST_BLOCK.expand(2, 8, 8))
    assert torch.equal(patterns.quick_bslongformer_layout(2, 16, 128), LONGFORMER.expand(2, 8, 8))


def test_bigbird_layout_is_longformers_and_a_block_for_each_row():
    layout = patterns.quick_bigbird_layout(2, 16, 128, seed=1)
    assert torch.equal(layout[0], layout[1])
    assert torch.equal(layout | LONGFORMER, layout)
    free = (LONGFORMER == 0).any(-1)[0]
    assert torch.equal((layout - LONGFORMER)[0].sum(1), free.long())
    torch.manual_seed(0)
    first, second = (patterns.quick_bigbird_layout(1, 16, 1024) for _ in range(2))
    assert not torch.equal(first, second)


def test_groups_of_different_sizes():
    layout = patterns.quick_variable_layout(
        1, 4, 31, local_window_blocks=(1, 2), global_block_indices=(5, 100)
    )
    expected = rows(
        "#....#..",
        ".##..#..",
        ".##..#..",
        "...###..",
        "...###..",
        ".....##.",
        ".....##.",
        ".....#.#",
    )
    assert torch.equal(layout, expected)


def test_fixed_layout_with_more_global_blocks():
    layout = patterns.quick_fixed_layout(1, 4, 22, num_local_blocks=4, num_global_blocks=2)
    assert torch.equal(layout, rows(*["######"] * 4, *["..####"] * 2))
    with pytest.raises(ValueError, match="a multiple of num_global_blocks"):
        patterns.quick_fixed_layout(1, 4, 22, num_local_blocks=3, num_global_blocks=2)


@pytest.mark.parametrize(("queries", "keys"), [(12, 20), (11, 17), (1, 1)])
def test_layout_of_a_pattern_covers_it(queries, keys):
    pattern = random_pattern(3, queries, keys)
    layout = patterns.pattern_to_layout(pattern, 4)
    expected = [
        [
            [
                int(pattern[h, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].any())
                for c in range(-(-keys // 4))
            ]
            for r in range(-(-queries // 4))
        ]
        for h in range(3)
    ]
    assert torch.equal(layout, torch.tensor(expected))
    assert torch.equal(patterns.pattern_to_layout(pattern[1].int(), 4), layout[1])
    with pytest.raises(ValueError, match=r"\[H, Mq, Mkv\] or \[Mq, Mkv\]"):
        patterns.pattern_to_layout(pattern[0, 0], 4)


def test_pattern_of_a_layout():
    pattern = patterns.layout_to_pattern(torch.tensor([[[0, 1], [1, 0]]]), 2)
    expected = rows("..##", "..##", "##..", "##..").bool()
    assert torch.equal(pattern, expected)


@pytest.mark.parametrize("causal", [False, True])
def test_mask_of_whole_blocks_is_the_pattern(causal):
    layout = random_pattern(3, 6, 6) | torch.eye(6, dtype=torch.bool)
    pattern = patterns.layout_to_pattern(layout, 4)
    if causal:
        pattern = pattern.tril()
    mask = patterns.to_block_mask(pattern, 4, causal=causal)
    assert torch.equal(mask.materialize((3, 24, 24)) == 0, pattern)
    cropped = patterns.to_block_mask(pattern[0, :22, :22], 4, causal=causal)
    assert torch.equal(cropped.materialize((22, 22)) == 0, pattern[0, :22, :22])


def test_parts_of_blocks_are_covered_when_asked_for():
    pattern = random_pattern(8, 12)
    with pytest.raises(ValueError, match="pass covering=True"):
        patterns.to_block_mask(pattern, 4)
    with pytest.raises(ValueError, match="pass covering=True"):
        patterns.to_block_mask(pattern, 4, causal=True)
    covering = patterns.to_block_mask(pattern, 4, covering=True)
    expected = patterns.layout_to_pattern(patterns.pattern_to_layout(pattern, 4), 4)
    assert torch.equal(covering.materialize((8, 12)) == 0, expected)
    single = patterns.to_block_mask(pattern, 1)
    assert torch.equal(single.materialize((8, 12)) == 0, pattern)


@pytest.mark.parametrize(("queries", "keys"), [(24, 24), (24, 9), (9, 24), (1, 4)])
def test_cropped_masks(queries, keys):
    layout = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(2)) < 0.5
    mask = patterns.crop_blocks(BlockSparseMask.from_pattern(layout, 4), queries, keys)
    expected = patterns.layout_to_pattern(layout, 4)[:, :queries, :keys]
    assert torch.equal(mask.materialize((3, queries, keys)) == 0, expected)
    rest = layout[:, : -(-queries // 4), : -(-keys // 4)]
    assert torch.equal(patterns.mask_to_layout(mask, -(-keys // 4)), rest)


def test_blocks_are_gathered_in_order():
    x = torch.randn(2, 3, 8, 12)
    layout = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(4)) < 0.5
    expected = [
        x[:, h, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4] for h, r, c in layout.nonzero().tolist()
    ]
    assert torch.equal(patterns.block_sparsify_tensor(x, layout, 4), torch.stack(expected, 1))


def test_incomplete_blocks_are_completed_with_zeros():
    x = torch.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7)
    layout = patterns.pattern_to_layout(torch.ones(3, 5, 7), 4)
    blocks = patterns.block_sparsify_tensor(x, layout, 4)
    assert blocks.shape == (2, 3 * 2 * 2, 4, 4)
    assert torch.equal(blocks[:, 0], x[:, 0, :4, :4])
    assert torch.equal(blocks[:, -1, :1, :3], x[:, 2, 4:, 4:])
    assert blocks.sum() == x.sum()
    with pytest.raises(ValueError, match=r"expected mask \[3, 2, 2\]"):
        patterns.block_sparsify_tensor(x, layout[:, :1], 4)
