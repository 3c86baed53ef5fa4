"""`python -m attn_continual.benchmark`, on small cases, and what it compares with."""

import pickle
from functools import partial

import pytest
import torch

from attn_continual.benchmark import __main__ as program
from attn_continual.benchmark import positions
from attn_continual.benchmark.cases import CASES
from attn_continual.benchmark.literal import attend_by_looking_up, attend_by_shifting
from attn_continual.benchmark.positions import RelativeAttentionCase
from attn_continual.benchmark.rolling import RollingAttention
from attn_continual.relative_attention import RelativeAttention
from attn_continual.returnn import RelPosSelfAttention, relative_positional_encoding
from attn_continual.single_output import SingleOutputMultiheadAttention
from attn_ops.benchmark import command
from benchmark_runs import run_quickly
from reference.continual import relative_attention as pair_by_pair
from reference.continual import returnn as reference

run = partial(run_quickly, program)


def test_names_tell_the_cases_apart():
    assert len({case.name for case in CASES}) == len(CASES)


POSITIONS = ["^rel-pos M", "^rel-pos causal", "^c2c.*p2c M", "without logits", "2D"]


def bytes_returned(preparations):
    """Stand in for measure_peaks: prepare the calls as its process would, without starting it."""
    calls = [prepare() for prepare in pickle.loads(pickle.dumps(preparations))]  # noqa: S301
    return [sum(x.nbytes for x in call()) for call in calls]


@pytest.mark.parametrize(
    "only", ["^step N1 E512.*512$", "^chunk.*E512", "^step 100000", *POSITIONS]
)
def test_a_case_is_checked_timed_and_written(tmp_path, monkeypatch, only):
    if only != POSITIONS[0]:
        monkeypatch.setattr(positions, "measure_peaks", bytes_returned)
    status, report = run(tmp_path, "--only", only)
    assert status == 0
    (measured,) = report["results"]
    assert 0 <= measured["error"] <= measured["error_allowed"]
    assert measured["speedup"] == measured["baseline"]["median"] / measured["ours"]["median"]
    written = (tmp_path / "benchmark.md").read_text()
    assert measured["name"] in written
    peaks = measured["peak_bytes"]
    assert (peaks is not None) == (only in POSITIONS) == ("MiB" in written)
    assert peaks is None or min(peaks.values()) > 0


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


@pytest.mark.parametrize(
    ("only", "cls"),
    [("^rel-pos M", RelPosSelfAttention), ("2D", RelativeAttention)],
)
def test_a_wrong_gradient_is_reported_and_never_timed(tmp_path, monkeypatch, only, cls):
    honest = cls.forward

    def spoilt(layer, x, *inputs, **named):
        return honest(layer, x.detach() + 1.1 * (x - x.detach()), *inputs, **named)

    monkeypatch.setattr(cls, "forward", spoilt)
    monkeypatch.setattr(command, "time_in_turns", lambda *_: pytest.fail("a wrong one was timed"))
    status, report = run(tmp_path, "--only", only)
    assert status == 1
    assert report["results"][0]["peak_bytes"] is None


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_shift_is_attention_by_relative_positions(is_causal):
    layer = RelPosSelfAttention(6, 5, key_dim_total=8, value_dim_total=10, num_heads=2).double()
    x = torch.randn(1, 7, 6, dtype=torch.float64)
    encodings, _ = relative_positional_encoding(7, 6, dtype=torch.float64)
    encodings = encodings[:7] if is_causal else encodings
    got = attend_by_shifting(layer, x, encodings, is_causal=is_causal)
    expected = reference.self_attention(layer, x[0], lambda i, j: j <= i or not is_causal)
    torch.testing.assert_close(got[0], expected)


def test_the_lookups_are_relative_attention():
    case = RelativeAttentionCase(rows=5, width=8, heads=2, coordinates=2)
    layer = case.make_layer().double()
    for weight in layer.parameters():
        torch.nn.init.normal_(weight)
    x, places = torch.randn(1, 5, 8, dtype=torch.float64), case._relative_positions()
    expected = pair_by_pair.attend(
        dict(layer.named_parameters()),
        x,
        x,
        x,
        relative_positions=places,
        heads=2,
        coordinates=2,
    )
    torch.testing.assert_close(attend_by_looking_up(layer, x, places), expected)


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
