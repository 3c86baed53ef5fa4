"""What holds for every continual layer: its contract, what it refuses, and that age is no matter.

In float32 and float64, at windows of 1, 2 and more steps, with streams or time first.
"""

import copy

import pytest
import torch
from torch.testing import assert_close

from allocated_elements import AllocatedElements
from attn_continual.streams import tensors_of
from attn_continual.testing import verify_contract
from continual_layers import CASES, POSITIONS, E, L, N, make

every_layer = pytest.mark.parametrize("name", CASES)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contract(name, dtype):
    verify_contract(*make(name, dtype))


@every_layer
@pytest.mark.parametrize("length", [1, 2])
def test_contract_of_windows_of_one_and_two_steps(name, length):
    verify_contract(*make(name, torch.float64, length=length, batch_first=False))


@every_layer
def test_what_is_refused_leaves_the_state_alone(name):
    module, x = make(name, torch.float32)
    rows = {
        "streams": torch.zeros(N - 1, E),
        "features": torch.zeros(N, E - 1),
        "one feature": torch.zeros(N, 1),
        "no axes": torch.zeros(()),
    }
    # Torch says it of causal projections, before anything is written; positions take any dtype.
    if "causal" not in name and name != "positions":
        rows["dtype"] = torch.zeros(N, E, dtype=torch.float64)
    with torch.no_grad():
        module.forward_steps(x)
        before = module.get_state()
        for row in rows.values():
            chunk = row.unsqueeze(module.time_axis) if row.dim() else row
            for run, given in ((module.forward_step, row), (module.forward_steps, chunk)):
                with pytest.raises(ValueError, match=r"expected .* got"):
                    run(given)
                assert_close(module.get_state(), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in CASES if "layer" in name or "encoder" in name])
def test_masks_that_are_refused_leave_the_state_alone(name):
    module, x = make(name, torch.float32)
    mask = "mask" if "encoder" in name else "src_mask"
    refused = [
        {mask: torch.zeros(L, L + 1)},
        {mask: torch.zeros(2 * (N - 1), L, L)},
        {"src_key_padding_mask": torch.zeros(1) > 0},
        {"src_key_padding_mask": torch.zeros(N, 1) > 0},
    ]
    with torch.no_grad():
        module.forward_steps(x)
        before = module.get_state()
        for masks in refused:
            with pytest.raises(ValueError, match=r"expected .* got"):
                module.forward_step(torch.ones(N, E), **masks)
            assert_close(module.get_state(), before, rtol=0, atol=0)


@every_layer
@pytest.mark.parametrize(
    "active", [torch.ones(1).bool(), torch.ones(N), torch.ones(N, 1).bool(), torch.ones(4).bool()]
)
def test_active_streams_are_told_by_one_bool_each(name, active):
    module, x = make(name, torch.float32)
    state = module.initial_state(N)
    with torch.no_grad():
        for run, given, in_place in (
            (module.step, x.select(module.time_axis, 0), False),
            (module.step, x.select(module.time_axis, 0), True),
            (module.steps, x, False),
        ):
            with pytest.raises(ValueError, match=r"expected active, bool \[3\], got"):
                run(given, state, active=active, in_place=in_place)
            assert_close(state, module.initial_state(N), rtol=0, atol=0)


def outputs_of(module, x, state, *, in_place):
    """Run functional steps over half of x, and a chunk over the rest."""
    time, half = module.time_axis, x.shape[module.time_axis] // 2
    rest = x.narrow(time, half, x.shape[time] - half)
    outs = []
    for row in x.unbind(time)[:half]:
        out, state, _ = module.step(row, state, in_place=in_place)
        outs.append(out)
    return outs, module.steps(rest, state)[0]


@every_layer
@pytest.mark.parametrize("in_place", [False, True])
def test_a_state_may_be_of_another_dtype_than_the_weights(name, in_place):
    module, x = make(name, torch.float32)
    with torch.no_grad():
        expected = outputs_of(module, x, module.initial_state(N), in_place=in_place)
        for dtype, atol in ((torch.bfloat16, 0.05), (torch.float64, 1e-5)):
            state = module.initial_state(N, dtype=dtype)
            assert_close(
                outputs_of(module, x, state, in_place=in_place), expected, rtol=0, atol=atol
            )


def allocated_by(module, row):
    with AllocatedElements() as watch:
        module.forward_step(row)
    return watch.largest


@every_layer
@pytest.mark.slow
def test_a_hundred_thousand_steps_leave_no_trace(name):
    """An old stream goes on as a new one does, in as much memory."""
    module, x = make(name, torch.float32)
    rounds, length, single = 101, 142 * POSITIONS, 10  # no multiple of the window
    past = 8 * torch.randn(N, length, E, generator=torch.Generator().manual_seed(1))
    chunk = past[:, single:].movedim((0, 1), (module.stream_axis, module.time_axis))
    last = x.unbind(module.time_axis)
    with torch.no_grad():
        new = copy.deepcopy(module)
        expected = [new.forward_step(row) for row in last]
        for _ in range(rounds):
            for row in past[:, :single].unbind(1):
                module.forward_step(row)
            module.forward_steps(chunk)
        got = [module.forward_step(row) for row in last]
        assert allocated_by(module, last[0]) == allocated_by(new, last[0])
    assert module.get_state().steps > 100_000
    shapes = [[t.shape for t in tensors_of(m.get_state().tensors)] for m in (module, new)]
    assert shapes[0] == shapes[1]
    first = module.receptive_field - 1  # by then both have seen the same
    got, expected = torch.stack(got[first:]), torch.stack(expected[first:])
    assert_close(got, expected, rtol=0, atol=2e-6 * expected.abs().max().item())
