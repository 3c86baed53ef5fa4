"""Masks of blocks: their lists, the patterns they are built from, and what queries see."""

import pytest
import torch

from attn_ops import memory_efficient_attention
from attn_ops.fmha.attn_bias import AlibiBias, BlockSparseMask

NO_SLOPE = AlibiBias(torch.zeros(1))


def expected(pattern, block_size, num_queries, num_keys, causal=False):
    """Return 0 where a key is seen, looking each one's block up: [heads, Mq, Mkv]."""
    mask = torch.full((len(pattern), num_queries, num_keys), -torch.inf)
    for head in range(len(pattern)):
        for i in range(num_queries):
            for j in range(num_keys):
                listed = pattern[head][i // block_size][j // block_size]
                if listed and (j <= i or not causal):
                    mask[head, i, j] = 0.0
    return mask


def random_pattern(heads, rows, columns):
    return torch.rand(heads, rows, columns, generator=torch.Generator().manual_seed(rows)) > 0.5


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("block_size", "mq", "mkv"), [(1, 4, 5), (3, 12, 15), (4, 13, 18)])
def test_heads_have_patterns_of_their_own(causal, block_size, mq, mkv):
    pattern = random_pattern(3, 4, 5)
    mask = BlockSparseMask.from_pattern(pattern, block_size, causal=causal)
    want = expected(pattern, block_size, mq, mkv, causal)
    assert torch.equal(mask.materialize((2, 3, mq, mkv)), want.expand(2, 3, mq, mkv))


def test_heads_share_a_pattern():
    pattern = random_pattern(1, 4, 4)
    mask = BlockSparseMask.from_pattern(pattern[0], 2)
    assert torch.equal(mask.materialize((8, 8)), expected(pattern, 2, 8, 8)[0])
    assert torch.equal(mask.materialize((2, 3, 8, 8))[1, 2], expected(pattern, 2, 8, 8)[0])


def test_groups_of_heads():
    pattern = random_pattern(6, 2, 2)
    mask = BlockSparseMask.from_pattern(pattern, 2)
    grouped = mask.materialize((1, 2, 3, 4, 4))
    assert torch.equal(grouped.flatten(1, 2), mask.materialize((1, 6, 4, 4)))


def test_lists_are_compressed_rows():
    pattern = torch.tensor([[[1, 0, 1], [0, 0, 0]], [[0, 1, 0], [1, 1, 1]]], dtype=torch.bool)
    mask = BlockSparseMask.from_pattern(pattern, 8)
    assert mask.offsets.tolist() == [[0, 2, 2], [2, 3, 6]]
    assert mask.indices.tolist() == [0, 2, 1, 0, 1, 2]
    assert mask.offsets.dtype == mask.indices.dtype == torch.int32


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3)])
def test_empty_patterns(shape):
    mask = BlockSparseMask.from_pattern(torch.zeros(shape, dtype=torch.bool), 4)
    assert mask.indices.shape == (0,)
    assert mask.offsets.shape == (shape[0] if len(shape) == 3 else 1, shape[-2] + 1)


def test_lists_in_any_order():
    mask = BlockSparseMask.from_lists([[2, 0], [], [1]], block_size=2)
    pattern = torch.tensor([[[1, 0, 1], [0, 0, 0], [0, 1, 0]]], dtype=torch.bool)
    assert torch.equal(mask.materialize((6, 6)), expected(pattern, 2, 6, 6)[0])


@pytest.mark.parametrize("lists", [[[0, 0]], [[-1]], [[2**31]]])
def test_lists_name_different_blocks(lists):
    with pytest.raises(ValueError, match="expected different blocks of 0 or more"):
        BlockSparseMask.from_lists(lists, block_size=2)


@pytest.mark.parametrize("block", [1.5, None, "1"])
def test_lists_name_blocks_by_ints(block):
    with pytest.raises(TypeError, match=r"expected ints as blocks, got .* for block 1"):
        BlockSparseMask.from_lists([[0], [0, block]], block_size=2)


@pytest.mark.parametrize("name", ["local_blocks", "global_blocks", "random_blocks", "heads"])
def test_counts_of_blocks_are_ints_of_0_or_more(name):
    with pytest.raises(TypeError, match=rf"expected an int as {name}, got 1\.5"):
        BlockSparseMask.local_and_global(4, 2, **{name: 1.5})
    with pytest.raises(ValueError, match=f"expected {name} of . or more, got -1"):
        BlockSparseMask.local_and_global(4, 2, **{name: -1})


@pytest.mark.parametrize("causal", [False, True])
def test_local_and_global(causal):
    mask = BlockSparseMask.local_and_global(8, 1, local_blocks=1, global_blocks=2, causal=causal)
    seen = mask.materialize((8, 8)) == 0
    for i in range(8):
        for j in range(8):
            listed = abs(i - j) <= 1 or i < 2 or j < 2
            assert seen[i, j] == (listed and (j <= i or not causal))


def test_random_blocks_differ_between_heads_and_repeat_with_the_generator():
    def draw():
        return BlockSparseMask.local_and_global(
            16,
            4,
            local_blocks=0,
            random_blocks=3,
            heads=4,
            generator=torch.Generator().manual_seed(0),
        )

    mask = draw()
    assert torch.equal(mask.indices, draw().indices)
    seen = mask.materialize((4, 64, 64)) == 0
    assert not torch.equal(seen[0], seen[1])
    per_row = mask.offsets.diff(dim=1)
    assert per_row.min() >= 3
    assert per_row.max() <= 4


def test_causal_random_blocks_come_before_the_diagonal():
    mask = BlockSparseMask.local_and_global(
        12, 1, local_blocks=0, random_blocks=2, causal=True, generator=torch.Generator()
    )
    assert mask.offsets.diff(dim=1)[0, 3:].min() >= 2
    assert torch.equal(mask.materialize((12, 12)).triu(1), torch.full((12, 12), -torch.inf).triu(1))


def test_density():
    assert BlockSparseMask.local_and_global(10, 64, local_blocks=0).density == pytest.approx(0.1)
    full = torch.ones(3, 5, 5, dtype=torch.bool)
    assert BlockSparseMask.from_pattern(full, 64).density == 1.0


@pytest.mark.parametrize(
    ("offsets", "indices", "message"),
    [
        (torch.zeros(1, 2), torch.zeros(0, dtype=torch.int32), "expected offsets, an int32"),
        (torch.zeros(2, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), "offsets, an int32"),
        (torch.zeros(1, 2, dtype=torch.int32), torch.zeros(0), "expected indices, an int32"),
    ],
)
def test_lists_are_int32(offsets, indices, message):
    with pytest.raises(ValueError, match=message):
        BlockSparseMask(offsets, indices, 4)


@pytest.mark.parametrize("size", [2.0, None])
def test_block_size_is_an_int(size):
    with pytest.raises(TypeError, match="BlockSparseMask: expected an int as block_size, got"):
        BlockSparseMask.from_lists([[0]], size)


def test_blocks_hold_a_key_at_least():
    with pytest.raises(ValueError, match="block_size of 1 or more, got 0"):
        BlockSparseMask.from_lists([[0]], block_size=0)


@pytest.mark.parametrize("pattern", [torch.zeros(2, 2), torch.zeros(2, dtype=torch.bool)])
def test_patterns_are_bool(pattern):
    with pytest.raises(ValueError, match="from_pattern: expected a bool tensor"):
        BlockSparseMask.from_pattern(pattern, 4)


def test_materialize_refuses_more_queries_or_other_heads():
    mask = BlockSparseMask.from_pattern(torch.ones(2, 1, 1, dtype=torch.bool), 4)
    with pytest.raises(ValueError, match="at most 4 queries, 1 blocks of 4, got 5"):
        mask.materialize((1, 2, 5, 4))
    with pytest.raises(ValueError, match=r"shape \[..., 2, Mq, Mkv\], as the mask has 2 heads"):
        mask.materialize((1, 3, 4, 4))


@pytest.mark.parametrize("add", [lambda mask: mask, lambda mask: mask.add_bias(NO_SLOPE)])
@pytest.mark.parametrize(("rows", "blocks"), [(6, 2), (13, 4), (0, 0)])
def test_calls_refuse_other_numbers_of_query_blocks(rows, blocks, add):
    mask = add(BlockSparseMask.from_lists([[0], [0], [1]], block_size=4))
    x = torch.randn(1, rows, 1, 8)
    told = f"query with 12 rows, 3 blocks of 4 .*, got {rows}; make the mask for {blocks} blocks of"
    with pytest.raises(ValueError, match=told):
        memory_efficient_attention(x, x, x, mask)
    x = torch.randn(1, 9, 1, 8)
    assert memory_efficient_attention(x, x, x, mask).shape == x.shape


def test_moving_keeps_everything():
    mask = BlockSparseMask.from_lists([[0]], block_size=4, causal=True).to("meta")
    assert mask.offsets.device.type == mask.indices.device.type == "meta"
    assert mask.causal


def test_a_list_is_no_pattern():
    with pytest.raises(TypeError, match=r"from_pattern: expected a bool tensor, got <class 'li"):
        BlockSparseMask.from_pattern([[1, 0], [1, 1]], 64)
