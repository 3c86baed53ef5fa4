"""Rings against lists of every row that was written."""

import pytest
import torch
from torch.testing import assert_close

from attn_continual.ring_cache import (
    advance,
    held_rows_of_each,
    last_rows,
    last_rows_of_each,
    next_slot,
    rings_after,
    slot_ages,
    write,
    write_each,
    write_some_of_each,
    write_step,
)

SHAPE = (2, 3)
POSITIONS = [0, 1, 4, 5, 13]
NUM_SLOTS = [1, 2, 5]


def history(stream, steps):
    """Return the rows of a stream's first steps: each says of which stream and step it is."""
    rows = 100.0 * stream + torch.arange(1.0, steps + 1)
    return rows.view(-1, 1, 1).expand(-1, *SHAPE)


def ring_of(stream, steps, num_slots):
    ring = torch.zeros(num_slots, *SHAPE)
    for step, row in enumerate(history(stream, steps)):
        ring[step % num_slots] = row
    return ring


def rings_of(positions, num_slots):
    return torch.stack([ring_of(n, steps, num_slots) for n, steps in enumerate(positions)])


def next_rows(positions, count):
    return torch.stack([history(n, p + count)[p:] for n, p in enumerate(positions)])


@pytest.mark.parametrize("num_slots", NUM_SLOTS)
def test_rings_of_the_last_rows(num_slots):
    positions = [6, 13]
    rows = torch.stack([history(n, p)[-num_slots - 1 :] for n, p in enumerate(positions)])
    ring, single = rings_after((rows, rows[..., 0, 0]), torch.tensor(positions), num_slots)
    assert torch.equal(ring, rings_of(positions, num_slots))
    assert torch.equal(single, ring[..., 0, 0])


@pytest.mark.parametrize("num_slots", NUM_SLOTS)
@pytest.mark.parametrize("count", [0, 1, 2, 5, 6, 12])
def test_chunks_of_any_length_are_written(num_slots, count):
    ring = rings_of(POSITIONS, num_slots)
    before = ring.clone()
    position = torch.tensor(POSITIONS)
    got = write(ring, next_rows(POSITIONS, count), position)
    assert_close(got, rings_of([p + count for p in POSITIONS], num_slots), rtol=0, atol=0)
    assert torch.equal(ring, before)


@pytest.mark.parametrize("num_slots", NUM_SLOTS)
@pytest.mark.parametrize("in_place", [False, True])
def test_steps_are_written(num_slots, in_place):
    ring, position = rings_of(POSITIONS, num_slots), torch.tensor(POSITIONS)
    before = ring.clone()
    slot = next_slot(position, num_slots)
    got = write_step(ring, next_rows(POSITIONS, 1)[:, 0], slot, in_place=in_place)
    assert_close(got, rings_of([p + 1 for p in POSITIONS], num_slots), rtol=0, atol=0)
    assert (got is ring) == in_place
    assert torch.equal(ring, before) != in_place


@pytest.mark.parametrize("count", [1, 3, 7])
def test_streams_that_are_not_active_keep_their_rows(count):
    ring, position = rings_of(POSITIONS, 5), torch.tensor(POSITIONS)
    active = torch.tensor([True, False, True, False, True])
    rows = next_rows(POSITIONS, count)
    rows[~active] = torch.nan
    after = [p + count * bool(a) for p, a in zip(POSITIONS, active, strict=True)]
    assert_close(write(ring, rows, position, active), rings_of(after, 5), rtol=0, atol=0)
    assert advance(position, count, active).tolist() == after
    if count == 1:
        got = write_step(ring, rows[:, 0], next_slot(position, 5), active)
        assert_close(got, rings_of(after, 5), rtol=0, atol=0)


@pytest.mark.parametrize("num_slots", [3, 5])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_last_rows_begin_with_zeros_when_there_are_fewer(num_slots, count):
    rings, position = rings_of(POSITIONS, num_slots), torch.tensor(POSITIONS)
    for n, steps in enumerate(POSITIONS):
        rings[n, steps:] = torch.nan  # what was never written
    got, (held,) = last_rows(rings, position, count), held_rows_of_each([rings], position, count)
    for n, steps in enumerate(POSITIONS):
        rows = torch.cat([torch.zeros(count, *SHAPE), history(n, steps)])
        assert_close(got[n], rows[steps:], rtol=0, atol=0)
        known = min(steps, count)
        assert torch.equal(held[n, count - known :], got[n, count - known :])


def test_rings_of_other_rows_and_dtypes_are_read_and_written_together():
    ring, position = rings_of(POSITIONS, 5), torch.tensor(POSITIONS)
    rows, active = next_rows(POSITIONS, 3), torch.tensor([True, False, True, True, True])
    others = [(x[..., 0, 0] % 100).to(torch.float64) for x in (ring, rows)]
    for got, *given in zip(
        write_each((ring, others[0]), (rows, others[1]), position, active),
        last_rows_of_each((ring, others[0]), position, 4),
        (ring, others[0]),
        (rows, others[1]),
        strict=True,
    ):
        last, alone, new = given
        assert_close(got, write(alone, new, position, active), rtol=0, atol=0)
        assert_close(last, last_rows(alone, position, 4), rtol=0, atol=0)


@pytest.mark.parametrize("num_slots", [5, 9])
def test_of_each_stream_its_own_number_of_rows_is_written(num_slots):
    before = (0, 1, 5, 4)  # a ring that grows has not wrapped
    ring, position = rings_of(before, 5), torch.tensor(before)
    rows, lengths = next_rows(before, 4), (4, 0, 3, 2)
    (got,) = write_some_of_each([ring], [rows], position, torch.tensor(lengths), num_slots)
    assert got.shape[1] == num_slots
    for n, (seen, more) in enumerate(zip(before, lengths, strict=True)):
        for step in range(max(seen + more - num_slots, 0), seen + more):
            assert torch.equal(got[n, step % num_slots], history(n, seen + more)[step])


def test_last_rows_of_a_ring_without_slots():
    assert last_rows(torch.zeros(2, 0, *SHAPE), torch.tensor([0, 7]), 0).shape == (2, 0, *SHAPE)


@pytest.mark.parametrize("num_slots", NUM_SLOTS)
def test_ages_say_when_a_slot_was_written(num_slots):
    ages = slot_ages(torch.tensor(POSITIONS), num_slots)
    for n, steps in enumerate(POSITIONS):
        ring = ring_of(n, steps, num_slots)[:, 0, 0]
        for slot in range(num_slots):
            age = int(ages[n, slot])
            written = age < steps
            assert ring[slot] == (100.0 * n + steps - age if written else 0.0)


def test_rows_take_the_dtype_of_the_ring():
    ring, position = torch.zeros(1, 3, dtype=torch.bfloat16), torch.tensor([2])
    rows = torch.tensor([[1.0, 2.0]])
    assert write(ring, rows, position).tolist() == [[2.0, 0.0, 1.0]]
    assert write_step(ring, rows[:, 0], next_slot(position, 3)).tolist() == [[0.0, 0.0, 1.0]]


def test_gradients_reach_the_rows_that_are_still_there():
    ring = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    rows = torch.arange(5.0, dtype=torch.float64)[None].requires_grad_()
    weights = torch.tensor([[2.0, 3.0, 5.0]], dtype=torch.float64)
    out = (write(ring, rows, torch.tensor([1])) * weights).sum()
    of_ring, of_rows = torch.autograd.grad(out, [ring, rows])
    assert of_ring.tolist() == [[0.0, 0.0, 0.0]]
    assert of_rows.tolist() == [[0.0, 0.0, 2.0, 3.0, 5.0]]
