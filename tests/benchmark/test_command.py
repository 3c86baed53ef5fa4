"""`python -m attn_ops.benchmark`, on small cases."""

import json
from dataclasses import replace

import pytest
import torch

from attn_ops.benchmark import __main__ as command
from attn_ops.benchmark.contenders import Contender

QUICK = ("--quick", "--threads", "1")


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(folder, *arguments):
    status = command.main([*QUICK, "--out", str(folder), *arguments])
    return status, json.loads((folder / "benchmark.json").read_text())


@pytest.mark.parametrize(
    "only",
    [
        "^forward float32.*causal",
        "^backward bfloat16 B8",
        "^decode float32.*Hkv4",
        "bias",
        "^call",
        "^two",
    ],
)
def test_a_case_is_checked_timed_and_written(tmp_path, only):
    status, report = run(tmp_path, "--only", only)
    assert status == 0
    (measured,) = report["results"]
    assert 0 <= measured["error"] <= measured["error_allowed"]
    assert measured["ours"]["median"] > 0
    assert measured["speedup"] == measured["baseline"]["median"] / measured["ours"]["median"]
    assert report["machine"]["cpu_isa"]
    assert report["ceilings"][0]["float32"] > 0
    assert measured["name"] in (tmp_path / "benchmark.md").read_text()


def test_the_chart_is_a_picture(tmp_path):
    run(tmp_path, "--only", "^forward float32")
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_json_goes_alone_to_the_standard_output(tmp_path, capsys):
    _, report = run(tmp_path, "--only", "^call", "--json")
    assert json.loads(capsys.readouterr().out) == report


@pytest.mark.parametrize("only", ["^forward float32.*K64$", "^backward float32"])
def test_a_wrong_result_is_reported_and_never_timed(tmp_path, monkeypatch, capsys, only):
    honest = command.make_contenders

    def wrong(case, operands):
        ours, baseline = honest(case, operands)
        results = tuple(result.detach().clone() for result in ours.results)
        results[-1][-1, -1, -1, -1] += 0.01
        return replace(ours, run=never, results=results), baseline

    def never():
        pytest.fail("a wrong result was timed")

    monkeypatch.setattr(command, "make_contenders", wrong)
    status, report = run(tmp_path, "--only", only)
    assert status == 1
    assert report["results"][0]["ours"] is None
    assert "WRONG" in capsys.readouterr().out


def test_nan_is_wrong(tmp_path, monkeypatch):
    nothing = Contender("nothing", list, (torch.full((1, 8, 128, 64), torch.nan),))
    monkeypatch.setattr(command, "make_contenders", lambda *_: (nothing, nothing))
    assert run(tmp_path, "--only", "^forward float32.*K64$")[0] == 1


def test_a_pattern_that_matches_no_case_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="expected --only to match a case, got 'sideways'"):
        run(tmp_path, "--only", "sideways")


def test_a_pattern_that_is_none_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, "--only", "(")
    assert "expected a regular expression, got '('" in capsys.readouterr().err


def test_a_chart_that_was_not_drawn_is_not_announced(tmp_path, capsys):
    run(tmp_path, "--only", "^call")
    assert not (tmp_path / "benchmark.png").exists()
    assert "benchmark.json, .md" in (printed := capsys.readouterr().out)
    assert ".png" not in printed
