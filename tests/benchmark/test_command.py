"""`python -m attn_ops.benchmark`, on small cases."""

import json
import subprocess
import sys
from functools import partial

import pytest
import torch

import attn_ops
from attn_ops.benchmark import __main__ as program
from attn_ops.benchmark import command, masked, merging
from benchmark_runs import run_quickly

run = partial(run_quickly, program)


@pytest.mark.parametrize(
    "only",
    [
        "^forward float32.*causal",
        "^backward bfloat16 B8",
        "^decode float32.*Hkv4",
        " bias$",
        "^call",
        "^two",
        "^packed.*one by one",
        "^packed.*padded",
        "^window",
        "^decode pages",
        "^merge bfloat16",
        "^blocks.*0.25",
        "^alibi",
        "^relative",
    ],
)
def test_a_case_is_checked_timed_and_written(tmp_path, only):
    status, report = run(tmp_path, "--only", only)
    assert status == 0
    (measured,) = report["results"]
    assert 0 <= measured["error"] <= measured["error_allowed"]
    assert measured["ours"]["median"] > 0
    assert measured["baseline_is"]
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


def spoil(monkeypatch, module, name, change):
    honest = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *arguments: change(honest(*arguments)))
    monkeypatch.setattr(command, "time_in_turns", lambda *_: pytest.fail("a wrong one was timed"))


def nudge(out):
    out = out.clone()
    out.data[-1, -1, -1, -1] += 0.1
    return out


@pytest.mark.parametrize(
    ("only", "module", "name", "change"),
    [
        ("^forward float32.*K64$", attn_ops, "memory_efficient_attention", nudge),
        ("^backward float32", attn_ops, "memory_efficient_attention", lambda out: out * 1.1),
        ("^window", masked, "memory_efficient_attention", nudge),
        ("^merge float32", merging, "merge_attentions", lambda both: (nudge(both[0]), both[1])),
        ("^merge float32", merging, "merge_attentions", lambda both: (both[0], both[1] + 0.1)),
        ("^alibi", masked, "memory_efficient_attention", lambda out: out * torch.nan),
    ],
)
def test_a_wrong_result_is_reported_and_never_timed(
    tmp_path, monkeypatch, capsys, only, module, name, change
):
    spoil(monkeypatch, module, name, change)
    status, report = run(tmp_path, "--only", only)
    assert status == 1
    assert report["results"][0]["ours"] is None
    assert "WRONG" in capsys.readouterr().out


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


WITHOUT_RICH = """
import runpy, sys
sys.modules["rich"] = None
runpy.run_module(f"{sys.argv[1]}.benchmark", run_name="__main__")
"""


@pytest.mark.parametrize("package", ["attn_ops", "attn_modules", "attn_continual"])
def test_without_its_extra_it_ends_with_one_line(package):
    command = [sys.executable, "-c", WITHOUT_RICH, package, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("benchmark: expected rich, which the extra benchmark installs")
    assert f"packages/{package.replace('_', '-')}[benchmark]" in done.stderr
    assert done.stderr.count("\n") == 1
