"""Biases of distance: their numbers, alone and on the diagonal of a mask."""

import pytest
import torch

from attn_ops.fmha.attn_bias import (
    AlibiBias,
    BlockDiagonalMask,
    BlockDiagonalPaddedKeysMask,
    LowerTriangularMask,
    RelativePositionBias,
)


@pytest.mark.parametrize(("mq", "mkv"), [(3, 3), (2, 5), (5, 2), (1, 4)])
def test_alibi_alone_counts_from_the_last_query_and_key(mq, mkv):
    slopes = torch.tensor([1.0, 0.5])
    bias = AlibiBias(slopes).materialize((1, 2, mq, mkv))
    for h in range(2):
        for i in range(mq):
            for j in range(mkv):
                assert bias[0, h, i, j] == -slopes[h] * abs(j - (i + mkv - mq))


@pytest.mark.parametrize(("mq", "mkv"), [(3, 3), (2, 5), (5, 2), (1, 4)])
@pytest.mark.parametrize("radius", [0, 1, 2, 9])
def test_table_alone_counts_from_the_last_query_and_key(mq, mkv, radius):
    table = torch.randn(2, 2 * radius + 1)
    bias = RelativePositionBias(table).materialize((1, 2, mq, mkv))
    for h in range(2):
        for i in range(mq):
            for j in range(mkv):
                distance = max(-radius, min(radius, j - (i + mkv - mq)))
                assert bias[0, h, i, j] == table[h, distance + radius]


def test_causal_mask_counts_from_its_own_diagonal():
    biased = LowerTriangularMask().add_bias(AlibiBias(torch.ones(1)))
    assert biased.materialize((1, 1, 2, 4))[0, 0].tolist() == [
        [0.0, -torch.inf, -torch.inf, -torch.inf],
        [-1.0, 0.0, -torch.inf, -torch.inf],
    ]


def test_sequences_count_each_from_their_last_query_and_key():
    biased = BlockDiagonalMask.from_seqlens([1, 1], [2, 3]).add_bias(AlibiBias(torch.ones(1)))
    assert biased.materialize((1, 1, 2, 5))[0, 0].tolist() == [
        [-1.0, 0.0, -torch.inf, -torch.inf, -torch.inf],
        [-torch.inf, -torch.inf, -2.0, -1.0, 0.0],
    ]
    padded = BlockDiagonalPaddedKeysMask.from_seqlens([1], 3, [2])
    biased = padded.add_bias(AlibiBias(torch.ones(1)))
    assert biased.materialize((1, 1, 1, 3)).tolist() == [[[[-1.0, 0.0, -torch.inf]]]]


def test_groups_of_heads():
    bias = AlibiBias.for_heads(6)
    grouped = bias.materialize((1, 2, 3, 4, 4))
    assert torch.equal(grouped.flatten(1, 2), bias.materialize((1, 6, 4, 4)))


def test_slopes_are_those_of_the_paper():
    assert AlibiBias.for_heads(8).slopes.tolist() == [2.0**-n for n in range(1, 9)]
    sixteen = AlibiBias.for_heads(16).slopes
    torch.testing.assert_close(sixteen, torch.tensor([2.0 ** (-n / 2) for n in range(1, 17)]))


def test_other_numbers_of_heads_take_every_other_slope_of_the_next_power():
    slopes = AlibiBias.for_heads(12).slopes
    assert torch.equal(slopes[:8], AlibiBias.for_heads(8).slopes)
    torch.testing.assert_close(slopes[8:], AlibiBias.for_heads(16).slopes[0:8:2])
    assert AlibiBias.for_heads(1).slopes.tolist() == [2.0**-8]
    assert AlibiBias.for_heads(3, dtype=torch.float64).slopes.dtype == torch.float64


def test_there_is_one_head_at_least():
    with pytest.raises(TypeError, match=r"expected an int as heads, got 2\.0"):
        AlibiBias.for_heads(2.0)
    with pytest.raises(ValueError, match="expected heads of 1 or more, got 0"):
        AlibiBias.for_heads(0)


@pytest.mark.parametrize("slopes", [torch.ones(2, 2), torch.ones(2, dtype=torch.int32), [1.0]])
def test_slopes_are_one_axis_of_numbers(slopes):
    with pytest.raises(ValueError, match=r"expected slopes, a floating-point tensor \[Hq\]"):
        AlibiBias(slopes)


@pytest.mark.parametrize("table", [torch.ones(3), torch.ones(2, 4), torch.ones(2, 0)])
def test_tables_have_an_odd_number_of_columns(table):
    with pytest.raises(ValueError, match=r"\[Hq, 2 R \+ 1\], got"):
        RelativePositionBias(table)


def test_biases_move_and_are_the_users_own_tensors():
    slopes, table = torch.rand(2, requires_grad=True), torch.rand(2, 3, requires_grad=True)
    assert AlibiBias(slopes).mask_spec().relative.slopes is slopes
    assert RelativePositionBias(table).mask_spec().relative.table is table
    assert AlibiBias(slopes).to("meta").slopes.device.type == "meta"
    assert RelativePositionBias(table).to("meta").table.device.type == "meta"


def test_materialize_needs_the_heads():
    with pytest.raises(ValueError, match="as the mask has 2 heads"):
        AlibiBias(torch.ones(2)).materialize((4, 4))
