"""What the benchmark fits, counts and compares with."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from attn_modules.benchmark import memory, plain
from attn_modules.benchmark.cases import CONTESTS, GROWTH_CASES
from attn_modules.benchmark.growth import Cost, Growth, GrowthCase, fitted_exponent
from attn_ops.benchmark.measure import Timing
from attn_ops.benchmark.memory import _peak_bytes

MEBIBYTE = 2**20


def draw(*shape):
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape))
    )


def test_titles_tell_the_cases_apart():
    assert len({case.title for case in GROWTH_CASES}) == len(GROWTH_CASES)
    assert len({(contest.title, contest.other) for contest in CONTESTS}) == len(CONTESTS)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_power_of_the_rows_is_found(power):
    rows = [1024, 4096, 16384]
    assert fitted_exponent(rows, [3e-6 * m**power for m in rows]) == pytest.approx(power)


def test_one_point_has_no_exponent():
    assert math.isnan(fitted_exponent([1024], [1.0]))


@pytest.mark.parametrize(("backward_power", "is_met"), [(1.0, True), (1.2, False)])
def test_both_times_must_grow_slowly(backward_power, is_met):
    def timing(seconds):
        return Timing(seconds, seconds, seconds, 3)

    costs = tuple(
        Cost(m, timing(m / 1e6), timing(m**backward_power / 1e6), m * MEBIBYTE)
        for m in (10, 100, 1000)
    )
    growth = Growth(GrowthCase("local", lambda _: {}, aim=1.1), costs)
    assert growth.meets_aim is is_met
    assert growth.memory_exponent == pytest.approx(1.0)


class _Wasteful(torch.nn.Module):
    """Returns its queries by way of a tensor of 64 MiB."""

    def forward(self, q, k, v):
        return q + k + v + torch.ones(16 * MEBIBYTE).sum() * 0


def test_memory_that_a_call_frees_again_is_counted(monkeypatch):
    (case,) = [case for case in GROWTH_CASES if case.title == "pooling"]
    prepare = partial(memory._prepare, case.title, 256)
    assert _peak_bytes(prepare) < 16 * MEBIBYTE
    monkeypatch.setattr(GrowthCase, "build", lambda *_: _Wasteful())
    assert 60 * MEBIBYTE < _peak_bytes(prepare) < 80 * MEBIBYTE


def test_memory_is_measured_in_a_process_of_its_own():
    (case,) = [case for case in GROWTH_CASES if case.title == "pooling"]
    (extra,) = memory.measure_extra_bytes(case, [4096])
    assert 0 < extra < 64 * MEBIBYTE


def test_plain_blocks_are_a_window():
    q, k, v = draw(3, 1, 2, 32, 5)
    distance = torch.arange(32)[:, None] - torch.arange(32)
    scores = (q @ k.mT * 5**-0.5).masked_fill((distance < 0) | (distance > 8), -torch.inf)
    assert_close(plain.attend_in_blocks(q, k, v, 8), scores.softmax(-1) @ v)


def test_plain_chunks_are_causal_features():
    q, k, v = draw(3, 1, 2, 32, 5)
    projection = draw(5, 7)
    phi_q, phi_k = (plain.softmax_features(x, projection, torch.zeros(())) for x in (q, k))
    weights = (phi_q @ phi_k.mT).tril()
    expected = weights @ v / weights.sum(-1, keepdim=True)
    assert_close(plain.attend_by_features(q, k, v, projection, chunk=8), expected)
