"""Counts that constructors take."""

import pytest

from attn_modules import FavorAttention, LinformerAttention, LocalAttention


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
