"""`torch.utils.flop_counter` counts attention as it counts torch's own."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from attn_ops import memory_efficient_attention
from attn_ops.fmha import (
    attention_step_,
    memory_efficient_attention_forward_requires_grad,
    multihead_attention_step_,
)
from attn_ops.fmha.attn_bias import (
    BlockDiagonalCausalWithOffsetPaddedKeysMask,
    BlockDiagonalMask,
    LowerTriangularMask,
)

B, MQ, MKV, H, K, KV = 2, 24, 40, 6, 16, 8
FORWARD = 2 * B * H * MQ * MKV * (K + KV)
BACKWARD = 2 * B * H * MQ * MKV * (3 * K + 2 * KV)


def make_inputs(heads=H, *, needs_grad=False):
    return (
        torch.randn(B, MQ, H, K, requires_grad=needs_grad),
        torch.randn(B, MKV, heads, K, requires_grad=needs_grad),
        torch.randn(B, MKV, heads, KV, requires_grad=needs_grad),
    )


def count(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("mask", [None, LowerTriangularMask()])
def test_a_forward_counts_as_torchs_own(mask):
    inputs = make_inputs()
    ours = count(lambda: memory_efficient_attention(*inputs, mask))
    theirs = count(lambda: scaled_dot_product_attention(*(x.transpose(1, 2) for x in inputs)))
    assert ours == theirs == FORWARD


def test_a_backward_counts_once_beside_its_forward():
    inputs = make_inputs(needs_grad=True)
    assert count(lambda: memory_efficient_attention(*inputs).sum().backward()) == FORWARD + BACKWARD


def test_the_form_with_lse_counts():
    inputs = make_inputs(needs_grad=True)
    assert count(lambda: memory_efficient_attention_forward_requires_grad(*inputs)) == FORWARD


def test_attention_by_position_counts_as_attention():
    inputs = make_inputs(needs_grad=True)

    def attend():
        out, _lse = torch.ops.attn_ops.attention_by_position(*inputs)
        out.sum().backward()

    assert count(attend) == FORWARD + BACKWARD


def test_grouped_heads_count_for_every_query_head():
    query, key, value = make_inputs(heads=2)
    expanded = [x.unsqueeze(3).expand(-1, -1, -1, 3, -1) for x in (key, value)]
    query = query.unflatten(2, (2, 3))
    assert count(lambda: memory_efficient_attention(query, *expanded)) == FORWARD


def flops_of_pairs(pairs):
    return 2 * H * pairs * 2 * K


def test_sequences_count_their_own_keys_alone():
    lengths = [3, 17, 5]
    x = torch.randn(1, sum(lengths), H, K)
    mask = BlockDiagonalMask.from_seqlens(lengths)
    expected = flops_of_pairs(sum(n * n for n in lengths))
    assert count(lambda: memory_efficient_attention(x, x, x, mask)) == expected


def test_padding_counts_for_nothing():
    query, key = torch.randn(1, 2, H, K), torch.randn(1, 2 * 32, H, K)
    mask = BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([1, 1], 32, [9, 21])
    expected = flops_of_pairs(9 + 21)
    assert count(lambda: memory_efficient_attention(query, key, key, mask)) == expected


def test_fake_sequences_count_as_long_as_the_longest():
    lengths = [3, 17, 5]
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.randn(1, sum(lengths), H, K)
        starts = torch.empty(4, dtype=torch.int32)
    operator = torch.ops.attn_ops.attention
    sequences = {"q_start": starts, "k_start": starts, "max_q_len": 17, "max_k_len": 17}
    assert count(lambda: operator(x, x, x, **sequences)) == flops_of_pairs(3 * 17 * 17)


RING, WINDOW, EXTRA = 32, 20, 3


def make_rings(heads=H):
    rings = torch.zeros(B, RING, heads, K), torch.zeros(B, RING, heads, KV)
    return *rings, torch.zeros(B, dtype=torch.int64)


def test_a_step_counts_its_window_and_the_extra_rows():
    step = torch.randn(B, 1, H, K), torch.randn(B, 1, 2, K), torch.randn(B, 1, 2, KV)
    extra = {"extra_key": torch.randn(EXTRA, 2, K), "extra_value": torch.randn(EXTRA, 2, KV)}
    expected = 2 * B * H * (WINDOW + EXTRA) * (K + KV)
    assert count(lambda: attention_step_(*step, *make_rings(2), WINDOW, **extra)) == expected


def test_a_layers_step_counts_its_projections_too():
    width = 48
    in_weight, out_weight = torch.randn(H * (2 * K + KV), width), torch.randn(width, H * KV)
    weights = in_weight, None, out_weight, None
    x = torch.randn(B, width)
    projections = 2 * B * (in_weight.numel() + out_weight.numel())
    expected = projections + 2 * B * H * RING * (K + KV)
    assert count(lambda: multihead_attention_step_(x, *weights, *make_rings())) == expected
