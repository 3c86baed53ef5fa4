"""Streams of many steps: nothing drifts, slows down or is kept."""

import gc
import time

import pytest
import torch
from torch.testing import assert_close

from attn_continual import SingleOutputMultiheadAttention
from reference.continual.single_output import window_outputs

L, N, E, PERIOD = 16, 2, 8, 61


def make(dtype=torch.float32):
    torch.manual_seed(0)
    layer = SingleOutputMultiheadAttention(E, 2, sequence_len=L, query_index=-3, dtype=dtype)
    mha = torch.nn.MultiheadAttention(E, 2, batch_first=True, dtype=dtype)
    mha.load_state_dict(layer.state_dict())
    return layer.eval(), mha.eval()


def rows_of(dtype):
    """Return the inputs of a period, large enough for logits of several tens."""
    return 8 * torch.randn(N, PERIOD, E, generator=torch.Generator().manual_seed(1)).to(dtype)


def tensors_alive():
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def assert_last_window(mha, x, out, num_steps):
    last = x[:, torch.arange(num_steps - L, num_steps) % PERIOD].double()
    expected = window_outputs(mha.double(), last, last, last, L, -3)[:, 0]
    assert_close(out.double(), expected, rtol=0, atol=1e-6 * expected.abs().max().item())


def test_nothing_drifts():
    layer, mha = make()
    x, num_steps = rows_of(torch.float32), 3_000
    with torch.no_grad():
        for t in range(num_steps):
            out = layer.forward_step(x[:, t % PERIOD])
    assert_last_window(mha, x, out, num_steps)


@pytest.mark.slow
def test_a_hundred_thousand_steps_neither_drift_nor_slow_down():
    layer, mha = make()
    x, num_steps = rows_of(torch.float32), 100_000
    rows, times = x.unbind(1), []
    with torch.no_grad():
        for t in range(num_steps):
            start = time.perf_counter()
            out = layer.forward_step(rows[t % PERIOD])
            times.append(time.perf_counter() - start)
    assert_last_window(mha, x, out, num_steps)
    first, last = (sorted(part)[len(part) // 20] for part in (times[1_000:6_000], times[-5_000:]))
    assert last < 1.5 * first


def test_steps_and_chunks_stay_equal():
    layer, _ = make(torch.float64)
    chunked, _ = make(torch.float64)
    x = rows_of(torch.float64)
    with torch.no_grad():
        for period in range(50):
            last = chunked.forward_steps(x)
            steps = [layer.forward_step(row) for row in x.unbind(1)]
            if period:
                assert_close(torch.stack(steps, 1), last, rtol=0, atol=1e-11)


@pytest.mark.parametrize("grad", [False, True])
def test_nothing_is_kept(grad):
    layer, _ = make()
    x = rows_of(torch.float32).requires_grad_(grad).unbind(1)
    with torch.set_grad_enabled(grad):
        for t in range(L):
            layer.forward_step(x[t])
        before = tensors_alive()
        for t in range(300):
            layer.forward_step(x[t % PERIOD])
        assert tensors_alive() <= before  # what earlier tests left may be freed meanwhile
