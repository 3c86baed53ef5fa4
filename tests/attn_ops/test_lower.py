"""Each mask class lowers to the band that its materialized form shows."""

import pytest
import torch

from attn_ops import _lower
from attn_ops.fmha.attn_bias import (
    LowerTriangularFromBottomRightLocalAttentionMask,
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
)
from attn_ops.mask import ANCHOR_BOTTOM_RIGHT, UNBOUNDED, Band


def seen_through(band, num_queries, num_keys):
    shift = num_keys - num_queries if band.anchor == ANCHOR_BOTTOM_RIGHT else 0
    offset = torch.arange(num_keys) - torch.arange(num_queries)[:, None] - shift
    return (offset >= -band.left) & (offset <= band.right)


@pytest.mark.parametrize("lengths", [(4, 4), (3, 8), (8, 3), (1, 9)])
@pytest.mark.parametrize(
    "mask",
    [
        LowerTriangularMask(),
        LowerTriangularFromBottomRightMask(),
        LowerTriangularFromBottomRightLocalAttentionMask(1),
        LowerTriangularFromBottomRightLocalAttentionMask(4),
    ],
    ids=repr,
)
def test_band_is_the_materialized_mask(mask, lengths):
    assert torch.equal(
        seen_through(_lower.lower_band(mask), *lengths), mask.materialize(lengths) == 0
    )


def test_no_bias_and_a_tensor_bound_nothing():
    assert _lower.lower_band(None) == Band(UNBOUNDED, UNBOUNDED)
    assert _lower.lower_band(torch.zeros(1)) == Band()


def test_only_known_kinds_lower():
    assert _lower.can_lower(None)
    assert _lower.can_lower(torch.zeros(1))
    assert _lower.can_lower(LowerTriangularMask())
    assert not _lower.can_lower("causal")
