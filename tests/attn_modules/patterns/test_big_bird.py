"""BigBird's lists against sets of blocks, and the chances of its random blocks."""

import itertools

import pytest
import torch

from attn_modules.patterns import big_bird_block_mask
from reference.modules import big_bird as reference


def lists(mask, head=0):
    """Return what each block of queries sees, as `from_lists` takes it."""
    offsets, indices = mask.offsets[head].tolist(), mask.indices.tolist()
    return [indices[begin:end] for begin, end in itertools.pairwise(offsets)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("num_blocks", [1, 2, 3, 7, 16])
@pytest.mark.parametrize(
    ("window", "num_global", "num_random"),
    [(3, 2, 3), (0, 0, 2), (1, 0, 0), (5, 1, 20), (0, 3, 1), (3, 40, 2), (0, 0, 0)],
)
def test_lists_are_the_papers(causal, num_blocks, window, num_global, num_random):
    mask = big_bird_block_mask(
        num_blocks,
        4,
        num_random_blocks=num_random,
        num_sliding_window_blocks=window,
        num_global_blocks=num_global,
        num_heads=3,
        causal=causal,
        seed=2**32 - 5,
    )
    assert (mask.block_size, mask.causal) == (4, causal)
    for head in range(3):
        expected = reference.rows(
            num_blocks, window, num_global, num_random, head, causal, 2**32 - 5
        )
        assert lists(mask, head) == [sorted(seen) for seen in expected]


def test_seed_may_be_a_tensor():
    from_number = big_bird_block_mask(20, 4, seed=7)
    from_tensor = big_bird_block_mask(20, 4, seed=torch.tensor(7))
    assert torch.equal(from_number.indices, from_tensor.indices)
    assert not torch.equal(from_number.indices, big_bird_block_mask(20, 4, seed=8).indices)


def test_every_pair_of_random_blocks_is_equally_likely():
    num_blocks, seeds, heads = 6, 15, 200
    found = torch.zeros(num_blocks, num_blocks, num_blocks)
    for seed in range(seeds):
        mask = big_bird_block_mask(
            num_blocks,
            1,
            num_random_blocks=2,
            num_sliding_window_blocks=0,
            num_global_blocks=0,
            num_heads=heads,
            seed=seed,
        )
        for head in range(heads):
            for row, (first, second) in enumerate(lists(mask, head)):
                found[row, first, second] += 1
    first, second = torch.triu_indices(num_blocks, num_blocks, 1)
    pairs = found[:, first, second]
    expected = heads * seeds / 15
    chi_squared = ((pairs - expected) ** 2 / expected).sum(1)
    assert (chi_squared < 42).all()  # 14 degrees of freedom: 1 in 8000


def test_causal_lists_do_not_depend_on_the_length():
    short, long = (big_bird_block_mask(n, 4, causal=True, seed=3) for n in (9, 30))
    assert lists(short) == lists(long)[:9]


def test_memory_is_that_of_the_lists():
    mask = big_bird_block_mask(4000, 1)
    assert len(mask.indices) <= 2 * 4000 + 4000 * 8


@pytest.mark.parametrize(
    "counts", [{"num_random_blocks": -1}, {"num_global_blocks": -1}, {"num_heads": 0}]
)
def test_numbers_out_of_range_are_refused(counts):
    with pytest.raises(ValueError, match=f"expected {next(iter(counts))}, an int of"):
        big_bird_block_mask(4, 4, **counts)


def test_even_windows_are_refused():
    with pytest.raises(ValueError, match="an odd number"):
        big_bird_block_mask(4, 4, num_sliding_window_blocks=2)
