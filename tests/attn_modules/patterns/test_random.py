"""Random patterns: how much they keep, how likely each entry is, and that seeds repeat them."""

import pytest
import torch

from attn_modules.patterns import random_pattern, random_pattern_from_probability_matrix


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_random_pattern_hides_at_the_rate_of_sparsity():
    pattern = random_pattern(300, 0.9, generator=seeded(0))
    assert pattern.dtype == torch.bool
    assert abs(pattern.double().mean() - 0.1) < 0.004
    assert torch.equal(pattern, random_pattern(300, 0.9, generator=seeded(0)))
    assert not torch.equal(pattern, random_pattern(300, 0.9, generator=seeded(1)))


@pytest.mark.parametrize("sparsity", [0, 1, -0.5])
def test_sparsity_out_of_range_is_refused(sparsity):
    with pytest.raises(ValueError, match="between 0 and 1"):
        random_pattern(8, sparsity)


def test_entries_are_drawn_one_after_the_other():
    weights = torch.tensor([[4.0, 3.0], [0.0, 1.0]])
    generator, draws = seeded(0), 4000
    found = sum(
        random_pattern_from_probability_matrix(weights, 2, generator=generator).double()
        for _ in range(draws)
    )
    p = (weights / weights.sum()).flatten().tolist()
    chance = [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i) for i in range(4)]
    torch.testing.assert_close(
        found.flatten() / draws, torch.tensor(chance).double(), atol=0.025, rtol=0
    )
    assert found[1, 0] == 0


def test_just_so_many_are_drawn():
    weights = torch.rand(20, 30, generator=seeded(0)) + 0.01
    for count in (0, 1, 599, 600):
        assert random_pattern_from_probability_matrix(weights, count).sum() == count
    first, second = (
        random_pattern_from_probability_matrix(weights, 50, generator=seeded(3)) for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("weights", [[1.0, -1.0, 1.0], [1.0, 0.0, 0.0]])
def test_weights_that_cannot_be_drawn_are_refused(weights):
    with pytest.raises(ValueError, match="nothing negative, and nnz=2 positive entries"):
        random_pattern_from_probability_matrix(torch.tensor(weights), 2)
