"""The work that cases count, and when their targets are met."""

import pytest
import torch

from attn_ops.benchmark.case import Target
from attn_ops.benchmark.cases import CASES
from attn_ops.benchmark.ceilings import Ceilings
from attn_ops.benchmark.check import Error
from attn_ops.benchmark.dense import DenseCase
from attn_ops.benchmark.masked import BlockSparseCase, PackedCase, PagedCase, WindowCase
from attn_ops.benchmark.measure import Timing
from attn_ops.benchmark.merging import MergeCase
from attn_ops.benchmark.results import Result

FORWARD = DenseCase("forward", torch.float32, Mq=4096, Mkv=4096, K=64)
FULL_FLOPS = 2 * 2 * 8 * 4096 * 4096 * 64


def test_names_tell_the_cases_apart():
    assert len({case.name for case in CASES}) == len(CASES)


def test_a_forward_counts_two_products_and_a_backward_five():
    assert FORWARD.work == FULL_FLOPS
    backward = DenseCase("backward", torch.float32, Mq=4096, Mkv=4096, K=64)
    assert backward.work == 2.5 * FULL_FLOPS


def test_causal_counts_only_the_keys_that_are_seen():
    causal = DenseCase("forward", torch.float32, Mq=3, Mkv=3, K=1, Hq=1, causal=True)
    assert causal.work == 2 * 2 * (1 + 2 + 3)


def test_decoding_counts_the_bytes_of_the_key_heads():
    decode = DenseCase("decode", torch.bfloat16, Mq=1, Mkv=8192, K=128, Hq=32, Hkv=4)
    assert decode.work == 2 * 8192 * 4 * 128 * 2


@pytest.mark.parametrize(
    "case",
    [
        WindowCase(window=5, M=16),
        BlockSparseCase(density=0.5, M=64, block_size=8),
        PackedCase(against="one by one", M=20, sequences=3),
    ],
)
def test_masked_cases_count_the_keys_that_their_masks_show(case):
    seen = case.mask().materialize((case.rows, case.rows)).exp().sum().item()
    assert case.work == 2 * 2 * case.H * case.K * seen


def test_decoding_from_pages_counts_the_bytes_of_all_keys():
    assert PagedCase().work == 2 * 8192 * 32 * 128 * 2


def test_merging_counts_the_chunks_read_and_the_one_written():
    assert MergeCase(torch.bfloat16, chunks=2, M=3, H=5, K=7).work == 3 * 3 * 5 * (7 * 2 + 4)


def test_blocks_aim_at_the_part_that_is_really_listed():
    cases = [case for case in CASES if isinstance(case, BlockSparseCase)]
    assert [case.density for case in cases] == [0.1, 0.25]
    for case in cases:
        assert case.target.speedup == 1 / (1.25 * case.mask().density + 0.02)


def result(target, *, ours=1.0, threads=1):
    case = DenseCase("forward", torch.float32, Mq=1, Mkv=1, K=25, Hq=1, target=target)
    ceilings = Ceilings(threads, float32=200.0, bfloat16=None, read=1.0)
    timing, baseline = (Timing(seconds, seconds, seconds, 3) for seconds in (ours, 3.0))
    return Result(case, threads, ceilings, Error(0.0, 1.0), timing, baseline)


@pytest.mark.parametrize(
    ("target", "is_met"),
    [
        (Target(speedup=3.0), True),
        (Target(speedup=3.1), False),
        (Target(share=0.5), True),
        (Target(share=0.51), False),
        (Target(speedup=3.0, share=0.51), False),
        (Target(), None),
    ],
)
def test_every_aim_must_be_reached(target, is_met):
    assert result(target).speedup == 3.0
    assert result(target).share == 0.5
    assert result(target).meets_target is is_met


def test_targets_are_for_one_thread():
    assert result(Target(speedup=3.0), threads=2).meets_target is None
