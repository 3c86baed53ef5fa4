"""`python -m attn_modules.benchmark`, on few rows."""

import json

import pytest

from attn_modules import LocalAttention
from attn_modules.benchmark import __main__ as command
from attn_modules.benchmark import contests


def run(folder, *arguments):
    status = command.main(["--quick", "--out", str(folder), *arguments])
    return status, json.loads((folder / "benchmark.json").read_text())


def test_growth_is_measured_and_written(tmp_path, capsys):
    status, report = run(tmp_path, "--only", "^pooling$")
    assert status == 0
    (growth,) = report["growths"]
    assert [cost["rows"] for cost in growth["costs"]] == [256, 1024]
    for cost in growth["costs"]:
        assert cost["forward"]["median"] > 0
        assert cost["backward"]["median"] > 0
        assert cost["extra_bytes"] >= 0
    assert report["contests"] == []
    assert report["machine"]["cpu_isa"]
    assert "| pooling |" in (tmp_path / "benchmark.md").read_text()
    assert "pooling" in capsys.readouterr().out


@pytest.mark.parametrize("only", ["blocks in torch", "SDPA", "chunks in torch", "products alone"])
def test_a_contest_is_checked_timed_and_written(tmp_path, only):
    status, report = run(tmp_path, "--only", only)
    assert status == 0
    (outcome,) = report["contests"]
    assert 0 <= outcome["error"]["largest"] <= outcome["error"]["allowed"]
    assert outcome["speedup"] == outcome["theirs"]["median"] / outcome["ours"]["median"]
    assert outcome["other"] in (tmp_path / "benchmark.md").read_text()


def test_a_wrong_result_is_reported_and_never_timed(tmp_path, monkeypatch, capsys):
    honest = LocalAttention.forward
    monkeypatch.setattr(LocalAttention, "forward", lambda *inputs: 1.01 * honest(*inputs))
    monkeypatch.setattr(contests, "time_in_turns", lambda *_: pytest.fail("a wrong one was timed"))
    status, report = run(tmp_path, "--only", "against SDPA")
    assert status == 1
    assert report["contests"][0]["ours"] is None
    assert "WRONG" in capsys.readouterr().out


def test_a_pattern_that_matches_nothing_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="expected --only to match a mechanism, got 'sideways'"):
        run(tmp_path, "--only", "sideways")
