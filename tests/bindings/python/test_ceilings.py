"""What the machine can do at most: positive, plausible, and refused for nonsense."""

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
@pytest.mark.parametrize(("threads", "seconds"), [(0, 0.01), (-1, 0.01), (1, 0.0), (1, -1.0)])
def test_nothing_to_measure_is_refused(measure, threads, seconds):
    with pytest.raises(ValueError, match="expected num_threads >= 1 and seconds > 0"):
        measure(threads, seconds)
