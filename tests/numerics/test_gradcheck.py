"""torch.autograd.gradcheck, in float64, of the public function and of the log-sum-exp."""

import pytest
import torch
from torch import Tensor

import attn_ops
from attn_ops._autograd import attend_with_lse
from attn_ops.mask import (
    ANCHOR_BOTTOM_RIGHT,
    ANCHOR_TOP_LEFT,
    UNBOUNDED,
    Band,
    Dropout,
    MaskSpec,
)

B, MQ, MKV, K, KV = 2, 4, 6, 5, 3
MASKS = {
    "none": None,
    "causal": attn_ops.LowerTriangularMask(),
    "causal_bottom_right": attn_ops.LowerTriangularFromBottomRightMask(),
    "window": attn_ops.LowerTriangularFromBottomRightMask().make_local_attention(3),
}
HEADS = ((1, 1), (4, 2), (4, 1))
BIAS_SHAPES = ((B, 4, MQ, MKV), (1, 4, 1, MKV), (B, 1, MQ, 1), (1, 1, 1, 1))


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


def inputs(heads: int, key_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(heads)
    return leaf(B, MQ, heads, K), leaf(B, MKV, key_heads, K), leaf(B, MKV, key_heads, KV)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(("heads", "key_heads"), HEADS)
def test_query_key_value(heads, key_heads, mask):
    def attend(query, key, value):
        return attn_ops.memory_efficient_attention(query, key, value, mask)

    assert torch.autograd.gradcheck(attend, inputs(heads, key_heads))


@pytest.mark.parametrize("shape", BIAS_SHAPES, ids=str)
def test_bias_of_any_broadcast(shape):
    assert torch.autograd.gradcheck(
        attn_ops.memory_efficient_attention, (*inputs(4, 2), leaf(*shape))
    )


def test_bias_with_excluded_keys():
    bias = torch.randn(B, 4, MQ, MKV, dtype=torch.float64)
    bias[..., 2] = -torch.inf
    bias[:, 1, 3] = -torch.inf  # a query without keys
    scores = leaf(*bias.shape)

    def attend(query, key, value, finite):
        return attn_ops.memory_efficient_attention(query, key, value, bias + finite)

    assert torch.autograd.gradcheck(attend, (*inputs(4, 2), scores))


@pytest.mark.parametrize("keeps_keys", [True, False])
def test_bool_mask(keeps_keys):
    shape = (B, 1, 1, MKV) if keeps_keys else (1, 4, MQ, MKV)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.6

    def attend(query, key, value):
        return attn_ops.memory_efficient_attention(query, key, value, mask)

    assert torch.autograd.gradcheck(attend, inputs(4, 2))


@pytest.mark.parametrize("band", [(UNBOUNDED, UNBOUNDED), (2, 1)], ids=["full", "window"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_log_sum_exp_under_every_part_of_the_mask(band, dropout_p):
    anchor = ANCHOR_BOTTOM_RIGHT if band[0] == 2 else ANCHOR_TOP_LEFT
    seed = torch.tensor([7, 11]) if dropout_p else None

    def attend(query, key, value, bias):
        mask = MaskSpec(Band(*band, anchor), bias, Dropout(dropout_p, seed))
        return attend_with_lse(query, key, value, mask, 0.6, None)

    assert torch.autograd.gradcheck(attend, (*inputs(4, 2), leaf(1, 4, MQ, MKV)))


def test_dropout_of_the_public_function():
    def attend(query, key, value):
        torch.manual_seed(3)  # the same draw in every evaluation
        return attn_ops.memory_efficient_attention(query, key, value, p=0.3)

    assert torch.autograd.gradcheck(attend, inputs(4, 2))
