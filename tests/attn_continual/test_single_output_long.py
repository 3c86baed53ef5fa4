"""Streams of many steps: nothing drifts, slows down or is kept."""

import gc
import time

import pytest
import torch
from torch.testing import assert_close

from attn_continual import SingleOutputMultiheadAttention
from reference.continual.single_output import window_outputs

L, N, E, PERIOD = 16, 2, 8, 61

lengths = pytest.mark.parametrize(
    "num_steps", [3_000, pytest.param(100_000, marks=pytest.mark.slow)]
)


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


@lengths
def test_nothing_drifts(num_steps):
    layer, mha = make()
    x = rows_of(torch.float32)
    with torch.no_grad():
        for t in range(num_steps):
            out = layer.forward_step(x[:, t % PERIOD])
    last = x[:, torch.arange(num_steps - L, num_steps) % PERIOD].double()
    expected = window_outputs(mha.double(), last, last, last, L, -3)[:, 0]
    assert_close(out.double(), expected, rtol=0, atol=1e-6 * expected.abs().max().item())


@lengths
def test_steps_and_chunks_stay_equal(num_steps):
    layer, _ = make(torch.float64)
    x = rows_of(torch.float64)
    chunked, _ = make(torch.float64)
    with torch.no_grad():
        for start in range(0, num_steps, PERIOD):
            last = chunked.forward_steps(x)
            steps = [layer.forward_step(row) for row in x.unbind(1)]
            if start:
                assert_close(torch.stack(steps, 1), last, rtol=0, atol=1e-11)


@pytest.mark.parametrize("grad", [False, True])
@lengths
def test_nothing_is_kept(num_steps, grad):
    layer, _ = make()
    x = rows_of(torch.float32).requires_grad_(grad).unbind(1)
    with torch.set_grad_enabled(grad):
        for t in range(L):
            layer.forward_step(x[t])
        before = tensors_alive()
        for t in range(num_steps // 10):
            layer.forward_step(x[t % PERIOD])
        assert tensors_alive() == before


@pytest.mark.slow
def test_time_is_flat():
    layer, _ = make()
    x = rows_of(torch.float32).unbind(1)

    def quickest(count):
        times = []
        for t in range(count):
            start = time.perf_counter()
            layer.forward_step(x[t % PERIOD])
            times.append(time.perf_counter() - start)
        return sorted(times)[count // 20]

    with torch.no_grad():
        quickest(1_000)
        first = quickest(1_000)
        quickest(96_000)
        assert quickest(1_000) < 1.5 * first
