"""What the machine can do at most: positive, plausible, and refused for nonsense."""

import subprocess
import sys

import pytest

from attn_ops import _native


@pytest.mark.parametrize("threads", [1, 2])
def test_rates_are_within_what_any_core_can_do(threads):
    per_thread = _native.float32_ceiling(threads, 0.01) / threads
    assert 1e7 < per_thread < 1e12
    per_thread = _native.read_ceiling(threads, 0.01) / threads
    assert 1e6 < per_thread < 1e12


def test_bfloat16_is_measured_where_the_kernels_use_it():
    rate = _native.bfloat16_ceiling(1, 0.01)
    assert rate is not None if "avx512_bf16" in _native.cpu_isas() else rate is None or rate > 0


@pytest.mark.parametrize(
    "measure", [_native.float32_ceiling, _native.bfloat16_ceiling, _native.read_ceiling]
)
@pytest.mark.parametrize(
    ("threads", "seconds", "told"),
    [
        (0, 0.01, r"num_threads in \[1, 1024\], got 0"),
        (-1, 0.01, r"num_threads in \[1, 1024\], got -1"),
        (1_000_000, 0.01, r"num_threads in \[1, 1024\], got 1000000"),
        (1, 0.0, "seconds > 0, got 0"),
        (1, -1.0, "seconds > 0, got -1"),
        (1, float("nan"), "seconds > 0, got nan"),
    ],
)
def test_nothing_to_measure_is_refused(measure, threads, seconds, told):
    with pytest.raises(ValueError, match=f"expected {told}"):
        measure(threads, seconds)


def test_threads_that_the_system_refuses_are_an_error():
    # A thread's stack takes megabytes of addresses, of which the process gets no more than it has.
    program = """
import resource
from attn_ops import _native
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20,) * 2)
try:
    _native.float32_ceiling(500, 0.01)
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert "ceiling: expected 500 threads to start" in done.stdout
