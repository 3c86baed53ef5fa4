"""Attention over sliding windows against sums over single keys, by steps and by chunks."""

import pytest
import torch
from torch.testing import assert_close

from allocated_elements import AllocatedElements
from attn_continual.streams import snapshot, tensors_of
from attn_continual.window_attention import ExtraRows, Rows, Window
from reference.continual.window_attention import attend_windows

N, T, H, K, KV = 2, 13, 2, 3, 5
SHAPES = [  # length, delay, slots of the rings
    (1, 0, 1),
    (1, 0, 4),
    (2, 0, 2),
    (2, 1, 2),
    (4, 0, 4),
    (4, 3, 4),
    (4, 2, 7),
    (5, 0, 20),
]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def make_rows(steps=T, dtype=torch.float64):
    widths = (K, K, KV)
    return Rows(*(random(N, steps, H, w, seed=i, dtype=dtype) for i, w in enumerate(widths)))


def at(rows, start, stop):
    return Rows(*(None if x is None else x[:, start:stop] for x in rows))


def new_state(window, slots=None, dtype=torch.float64):
    return window.initial_state(N, H, K, KV, num_slots=slots, dtype=dtype)


def run(window, rows, state, lengths, **options):
    """Return outputs, state and valid of chunks of the given lengths; 1 runs single steps."""
    outs, valids, start = [], [], 0
    for length in lengths:
        part = at(rows, start, start + length)
        method = window.step if length == 1 else window.steps
        out, state, valid = method(part, state, **options)
        outs.append(out)
        valids.append(valid)
        start += length
    return torch.cat(outs, 1), state, torch.cat(valids, 1)


PARTITIONS = [[1] * T, [T], [2, 0, 5, 1, 1, 4], [9, 3, 1]]


def assert_right(window, rows, slots=None, extra=None, mask_row=None):
    """Hold every partition, functional and in place, to the reference wherever a query is."""
    added = None if mask_row is None else mask_row.expand(N, H, window.length)
    expected = attend_windows(
        *rows[:3], window.length, window.delay, hidden=rows.padding, added=added, extra=extra
    )
    if extra is not None:
        extra = ExtraRows(*extra)
    first = window.length - 1 if window.waits else window.delay
    for lengths in PARTITIONS:
        for in_place in (False, True):
            options = {"mask_row": mask_row, "extra": extra, "in_place": in_place}
            with torch.no_grad():
                out, _, valid = run(window, rows, new_state(window, slots), lengths, **options)
            assert valid.tolist() == [[t >= first for t in range(T)]] * N
            got, wanted = out[:, window.delay :], expected[:, window.delay :]
            assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("length", "delay", "slots"), SHAPES)
@pytest.mark.parametrize("waits", [True, False])
def test_windows_of_every_shape(length, delay, slots, waits):
    assert_right(Window(length, delay, waits), make_rows(), slots)


@pytest.mark.parametrize(("length", "delay", "slots"), [(4, 0, 4), (4, 2, 7), (2, 1, 2)])
@pytest.mark.parametrize("shape", [(1, 1), (1, H), (N, 1), (N, H)])
def test_what_a_mask_adds(length, delay, slots, shape):
    mask_row = random(*shape, length, seed=7)
    mask_row[..., 0] = -torch.inf
    assert_right(Window(length, delay), make_rows(), slots, mask_row=mask_row)


@pytest.mark.parametrize(("length", "delay", "slots"), [(4, 0, 4), (4, 2, 7), (1, 0, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_hidden_keys(length, delay, slots, masked):
    padding = torch.zeros(N, T, dtype=torch.bool)
    padding[0, [1, 2, 8]] = padding[1, 4:8] = True  # a window of the second stream sees no key
    mask_row = random(1, H, length, seed=3) if masked else None
    rows = make_rows()._replace(padding=padding)
    assert_right(Window(length, delay), rows, slots, mask_row=mask_row)


@pytest.mark.parametrize("delay", [0, 2])
def test_extra_keys(delay):
    extra = (random(2, H, K, seed=5), random(2, H, KV, seed=6))
    padding = random(N, T, seed=8) > 0
    assert_right(Window(4, delay), make_rows()._replace(padding=padding), extra=extra)
    mask_row = random(N, H, 4, seed=9)
    assert_right(Window(4, delay), make_rows(), extra=extra, mask_row=mask_row)


@pytest.mark.parametrize("lengths", PARTITIONS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_what_no_query_sees_may_be_anything(lengths, masked, in_place):
    window, rows = Window(3, 1), make_rows()
    mask_row = random(1, 1, 3, seed=4) if masked else None
    padding = torch.zeros(N, T, dtype=torch.bool)
    padding[:, 2] = True
    options = {"mask_row": mask_row, "in_place": in_place}
    with torch.no_grad():
        rows = rows._replace(padding=padding)
        expected, _, _ = run(window, rows, new_state(window, 8), lengths, **options)
        rows.key[:, 2], rows.value[:, 2] = torch.inf, torch.nan
        rows.key[0, 0] = torch.nan  # leaves the window of step 3, not the ring
        rows.value[0, 0] = torch.inf
        got, _, _ = run(window, rows, new_state(window, 8), lengths, **options)
    assert_close(got[1], expected[1], rtol=0, atol=0)
    assert_close(got[0, 3:], expected[0, 3:], rtol=0, atol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("lengths", [[2, 4], [1] * 6], ids=str)
def test_what_rings_hold_before_the_first_step_may_be_anything(lengths, masked):
    window, rows = Window(3, 1, waits=False), make_rows(6)
    options = {"mask_row": random(N, H, 3, seed=4) if masked else None}
    found = []
    for beginning in (0, torch.nan):
        leaves = [x.clone().requires_grad_() for x in rows[:3]]
        state = new_state(window, 5)
        for ring in (state.key, state.value):
            ring.fill_(beginning)
        out, _, valid = run(window, Rows(*leaves), state, lengths, **options)
        found.append((out, *torch.autograd.grad(out[valid].sum(), leaves)))
    for got, expected in zip(*found, strict=True):
        assert_close(got, expected, rtol=0, atol=0)


def test_rings_shorter_than_the_window_are_refused():
    with pytest.raises(ValueError, match="expected rings of at least 4 slots"):
        new_state(Window(4), 3)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("delay", [0, 2])
def test_streams_that_are_not_active(in_place, delay):
    window, rows = Window(4, delay), make_rows()
    active = torch.tensor([False, True])
    with torch.no_grad():
        _, state, _ = run(window, at(rows, 0, 6), new_state(window, 5), [6])
        before, alone = snapshot(state), snapshot(state)
        out, state, valid = window.step(at(rows, 6, 7), state, active=active, in_place=in_place)
        expected, alone, _ = window.step(at(rows, 6, 7), alone)
    assert valid.tolist() == [[False], [True]]
    assert_close(out[1], expected[1], rtol=0, atol=1e-12)
    for got, held, moved in zip(*map(tensors_of, (state, before, alone)), strict=True):
        assert torch.equal(got[0], held[0])
        assert torch.equal(got[1], moved[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    rows = make_rows(dtype=dtype)
    expected = attend_windows(*rows[:3], 4, 1)
    tolerance = {torch.float32: 1e-6}.get(dtype, 1e-2)
    for lengths in PARTITIONS:
        for in_place in (False, True):
            window = Window(4, 1)
            with torch.no_grad():
                out, _, _ = run(
                    window, rows, new_state(window, dtype=dtype), lengths, in_place=in_place
                )
            assert out.dtype == dtype
            assert_close(out[:, 1:].double(), expected[:, 1:], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("seen", [3, 500])
def test_a_step_in_place_allocates_as_much_at_any_time(seen):
    """No more than a few numbers per slot: the rings hold H * (K + Kv) per slot."""
    length, width = 64, 32
    window = Window(length)
    rows = Rows(*(random(1, 1, 4, width, seed=i) for i in range(3)))
    state = window.initial_state(1, 4, width, width, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(seen):
            _, state, _ = window.step(rows, state, in_place=True)
        with AllocatedElements() as watch:
            window.step(rows, state, in_place=True)
    assert watch.largest <= max(length, 4 * width), watch.operation
