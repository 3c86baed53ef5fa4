"""Peaks of memory are those of the calls alone."""

from functools import partial

import pytest

from attn_ops.benchmark.memory import measure_peaks

CALLS = """
import torch

def prepare(inside, returned):
    given = torch.ones(8 << 20)

    def call():
        torch.ones(inside << 18).sum()
        return [torch.ones(returned << 18), given[:0].clone()]

    return call

def fail():
    raise ValueError("there is no such call")
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Return a module that other processes can import too."""
    (tmp_path / "allocating_calls.py").write_text(CALLS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import allocating_calls  # noqa: PLC0415  it has just been written

    return allocating_calls


def test_peaks_are_beyond_what_is_given_and_returned(calls):
    preparations = [
        partial(calls.prepare, inside, returned) for inside, returned in ((40, 3), (5, 2))
    ]
    peaks = [peak / 2**20 for peak in measure_peaks(preparations)]
    assert peaks == pytest.approx([40 - 3, 5 - 2], abs=1)


def test_a_call_that_fails_says_why(calls):
    with pytest.raises(RuntimeError, match="there is no such call"):
        measure_peaks([calls.fail])
