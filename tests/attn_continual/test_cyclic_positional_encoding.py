"""The pattern against the paper's formula, number by number."""

import pytest
import torch
from torch.testing import assert_close

from attn_continual import CyclicPositionalEncoding
from reference.continual.cyclic_positional_encoding import cyclic_pattern


@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "as it is"])
@pytest.mark.parametrize(
    ("positions", "features"), [(1, 2), (2, 3), (7, 4), (31, 10), (64, 9), (33, 32)]
)
def test_pattern_is_the_formula(positions, features, pooled):
    got = CyclicPositionalEncoding(positions, features, pooled, dtype=torch.float64)
    expected = torch.tensor(
        cyclic_pattern(positions, features, mean_pooling=pooled), dtype=torch.float64
    )
    assert list(got.state_dict()) == ["pattern"]
    assert_close(got.pattern, expected, rtol=0, atol=1e-12)


def test_the_last_position_lies_beside_the_first():
    pattern = CyclicPositionalEncoding(40, 16, dtype=torch.float64).pattern
    steps = (pattern - pattern.roll(1, 0)).norm(dim=1)
    assert steps[0] < 1.5 * steps[1:].max()
    assert (pattern - pattern.roll(20, 0)).norm(dim=1).min() > 0.5 * steps.max()


def test_rows_are_looked_up_in_the_dtype_asked_for():
    encoding = CyclicPositionalEncoding(5, 4, dtype=torch.bfloat16)
    positions = torch.tensor([[0, 4], [4, 0]])
    assert torch.equal(encoding(positions), encoding.pattern[positions])
    assert encoding.pattern.dtype == torch.bfloat16
    assert not list(encoding.parameters())


@pytest.mark.parametrize(("positions", "features"), [(0, 4), (3, 1)])
def test_arguments_are_checked(positions, features):
    with pytest.raises(ValueError, match="expected a position and 2 features"):
        CyclicPositionalEncoding(positions, features)
