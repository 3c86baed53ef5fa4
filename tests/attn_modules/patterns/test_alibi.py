"""ALiBi's slopes and distances, head by head."""

import pytest
import torch

from attn_modules.patterns import alibi_bias, alibi_pattern

SLOPES = {
    4: [1 / 4, 1 / 16, 1 / 64, 1 / 256],
    6: [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8],
}


@pytest.mark.parametrize("heads", [4, 6])
@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (3, 9)])
def test_bias_and_pattern(heads, queries, keys):
    expected = torch.tensor(
        [
            [[-slope * abs(j - i - keys + queries) for j in range(keys)] for i in range(queries)]
            for slope in SLOPES[heads]
        ]
    )
    torch.testing.assert_close(alibi_bias(heads, queries, keys), expected)
    assert torch.equal(alibi_pattern(0.5, (heads, queries, keys)), expected > -0.5)


def test_bias_is_square_by_itself():
    assert torch.equal(alibi_bias(2, 5), alibi_bias(2, 5, 5))
