"""`python -m attn_continual.benchmark`, on small cases, and what it compares with."""

from functools import partial

import pytest
import torch

from attn_continual.benchmark import __main__ as program
from attn_continual.benchmark.cases import CASES
from attn_continual.benchmark.rolling import RollingAttention
from attn_continual.single_output import SingleOutputMultiheadAttention
from attn_ops.benchmark import command
from benchmark_runs import run_quickly

run = partial(run_quickly, program)


def test_names_tell_the_cases_apart():
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("only", ["^step N1 E512.*512$", "^chunk.*E512", "^step 100000"])
def test_a_case_is_checked_timed_and_written(tmp_path, only):
    status, report = run(tmp_path, "--only", only)
    assert status == 0
    (measured,) = report["results"]
    assert 0 <= measured["error"] <= measured["error_allowed"]
    assert measured["speedup"] == measured["baseline"]["median"] / measured["ours"]["median"]
    assert measured["name"] in (tmp_path / "benchmark.md").read_text()


@pytest.mark.parametrize("only", ["^step N1 E512.*512$", "^chunk.*E512", "^step 100000"])
def test_a_wrong_result_is_reported_and_never_timed(tmp_path, monkeypatch, only):
    honest = SingleOutputMultiheadAttention.forward_step

    def spoilt(*inputs, **named):
        out = honest(*inputs, **named)
        return None if out is None else out + 0.1

    monkeypatch.setattr(SingleOutputMultiheadAttention, "forward_step", spoilt)
    monkeypatch.setattr(
        SingleOutputMultiheadAttention, "forward_steps", lambda *_: torch.zeros(1, 32, 512)
    )
    monkeypatch.setattr(command, "time_in_turns", lambda *_: pytest.fail("a wrong one was timed"))
    status, report = run(tmp_path, "--only", only)
    assert status == 1
    assert report["results"][0]["ours"] is None


def test_rolling_is_attention_over_the_last_steps():
    mha = torch.nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64).eval()
    rows = torch.randn(2, 9, 12, dtype=torch.float64)
    rolling = RollingAttention(mha, 4)
    with torch.no_grad():
        rolling.fill(rows[:, :6])
        for step in range(6, 9):
            last = rows[:, step - 3 : step + 1]
            expected = mha(last[:, -1:], last, last)[0][:, 0]
            torch.testing.assert_close(rolling.step(rows[:, step]), expected)
