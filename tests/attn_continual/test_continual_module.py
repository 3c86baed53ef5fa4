"""The state inside a module: who may write into its memory, and where it goes."""

import copy
import pickle

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from attn_continual import ModuleState, SingleOutputMultiheadAttention
from attn_continual.streams import map_state, tensors_of
from running_mean import RunningMean

L, N, E = 4, 2, 6


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return SingleOutputMultiheadAttention(E, 2, sequence_len=L, dtype=torch.float64).eval()


@pytest.fixture
def sequence():
    return random(N, 3 * L, E)


def step_through(layer, x):
    return [layer.forward_step(row) for row in x.unbind(1)]


def whole_of(layer, x):
    layer = copy.deepcopy(layer)
    layer.clean_state()
    return layer.forward_steps(x)


def test_defaults_follow_from_the_receptive_field():
    module = RunningMean(window=5, delay=2)
    assert (module.receptive_field, module.warm_up_steps, module.delay) == (5, 4, 2)
    assert (module.time_axis, module.stream_axis) == (1, 0)
    module.time_axis = 0
    assert module.stream_axis == 1


def test_pad_end_runs_the_delayed_steps_over_zeros():
    module, x = RunningMean(window=4, delay=2), random(N, 6, 3)
    padded = torch.cat([x, torch.zeros(N, 2, 3, dtype=x.dtype)], 1)
    expected = module(padded)
    assert_close(module.forward_steps(x, pad_end=True), expected)
    assert_close(module.forward_step(x[:, 0]), (module(torch.cat([x, x[:, :1]], 1)))[:, -1])


def test_pad_end_takes_keys_of_another_width_and_keeps_the_mask():
    layer = SingleOutputMultiheadAttention(
        E, 2, kdim=3, vdim=5, sequence_len=L, query_index=-3, dtype=torch.float64
    ).eval()
    query, key, value = (random(N, 6, width) for width in (E, 3, 5))
    mask = random(L, L)
    zeros = [torch.cat([x, x.new_zeros(N, 2, x.shape[2])], 1) for x in (query, key, value)]
    expected = layer.forward_steps(*zeros, update_state=False, attn_mask=mask)
    assert_close(layer.forward_steps(query, key, value, pad_end=True, attn_mask=mask), expected)


def test_a_step_without_gradients_writes_one_row_and_allocates_none(layer, sequence):
    with torch.no_grad():
        step_through(layer, sequence[:, :L])
        places = [x.data_ptr() for x in tensors_of(layer._state)[:4]]
        step_through(layer, sequence[:, L:])
        assert [x.data_ptr() for x in tensors_of(layer._state)[:4]] == places


def test_steps_without_gradients_leave_graphs_alone(layer, sequence):
    x = sequence.requires_grad_()
    step_through(layer, x[:, :L])
    out = layer.forward_step(x[:, L])
    with torch.no_grad():
        rest = step_through(layer, x[:, L + 1 :])
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad[:, L].abs().sum() > 0
    assert_close(rest[-1], whole_of(layer, x)[:, -1])


@pytest.mark.parametrize("then", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_stream_goes_on_outside_of_inference_mode(layer, sequence, then):
    expected = whole_of(layer, sequence)
    with torch.inference_mode():
        step_through(layer, sequence[:, :L])
    with then():
        outs = step_through(layer, sequence[:, L:])
        assert_close(torch.stack(outs, 1), expected[:, 1:])


def test_history_reaches_back_if_it_is_not_cut(layer, sequence):
    x = sequence.requires_grad_()
    layer.detaches_state = False
    (grad,) = torch.autograd.grad(step_through(layer, x[:, :L])[-1].sum(), x)
    assert (grad[:, :L].abs().sum((0, 2)) > 0).all()
    layer.detaches_state = True
    layer.clean_state()
    (grad,) = torch.autograd.grad(step_through(layer, x[:, :L])[-1].sum(), x)
    assert grad[:, : L - 1].abs().sum() == 0


def from_pickle(layer):
    return pickle.loads(pickle.dumps(layer))  # noqa: S301


@torch.no_grad()
def test_a_shallow_copy_has_a_state_of_its_own(layer, sequence):
    expected = whole_of(layer, sequence)[:, 1:]
    step_through(layer, sequence[:, :L])
    step_through(copy.copy(layer), 1 - sequence)
    assert_close(layer.forward_steps(sequence[:, L:]), expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, from_pickle])
def test_copies_hold_no_history(layer, sequence, duplicate):
    layer.detaches_state = False
    step_through(layer, sequence[:, :L].requires_grad_())
    other = duplicate(layer)
    assert not any(x.requires_grad for x in tensors_of(other.get_state().tensors))
    assert layer.get_state().tensors.key.requires_grad
    rest = sequence[:, L:]
    assert_close(step_through(other, rest), step_through(layer, rest))


def test_the_state_moves_with_the_parameters(layer, sequence):
    step_through(layer, sequence[:, :L])
    layer.float()
    state = layer.get_state().tensors
    assert (state.key.dtype, state.position.dtype) == (torch.float32, torch.int64)
    out = layer.forward_step(sequence[:, L].float())
    assert_close(out.double(), whole_of(layer.double(), sequence)[:, 1], rtol=0, atol=1e-5)
    layer.to("meta")
    assert layer.get_state().tensors.key.device.type == "meta"


def test_a_snapshot_goes_on_in_another_dtype(layer, sequence):
    expected = whole_of(layer, sequence)[:, 1]
    step_through(layer, sequence[:, :L])
    state = layer.get_state()
    layer.float().set_state(state)
    out = layer.forward_step(sequence[:, L].float())
    assert_close(out.double(), expected, rtol=0, atol=1e-5)


def test_the_state_is_no_weight(layer, sequence):
    before = list(layer.state_dict())
    step_through(layer, sequence)
    assert list(layer.state_dict()) == before


def test_states_of_others_are_refused(layer, sequence):
    with pytest.raises(TypeError, match=r"expected a state of get_state, got <class 'tuple'>"):
        layer.set_state((sequence,))
    step_through(layer, sequence)
    state = layer.get_state()
    longer = SingleOutputMultiheadAttention(E, 2, sequence_len=L + 1)
    with pytest.raises(ValueError, match=r"state of tensors \['floating \[2, 5, 2, 3\].*got \["):
        longer.set_state(state)
    with pytest.raises(ValueError, match="was it made by a module of other sizes"):
        layer.set_state(ModuleState((), 3))
    with pytest.raises(ValueError, match="was it made by a module of other sizes"):
        layer.set_state(ModuleState(map_state(torch.sum, state.tensors), 3))
    counts_in_floats = state.tensors._replace(position=state.tensors.position.double())
    with pytest.raises(ValueError, match=r"'int64 \[2\]'\], got"):
        layer.set_state(ModuleState(counts_in_floats, 3))
    with pytest.raises(TypeError, match="state: expected a tensor, or a tuple of states, got"):
        layer.set_state(ModuleState("tensors", 3))
    assert longer.get_state() is None


def test_a_state_may_come_back_as_plain_tuples(layer, sequence):
    step_through(layer, sequence[:, :L])
    layer.set_state(ModuleState(tuple(tensors_of(layer.get_state().tensors)), L))
    assert_close(layer.forward_steps(sequence[:, L:]), whole_of(layer, sequence)[:, 1:])


def test_a_state_of_fewer_streams_may_go_on(layer, sequence):
    expected = whole_of(layer, sequence)
    step_through(layer, sequence[:, :L])
    state = layer.get_state()
    layer.set_state(ModuleState(map_state(lambda x: x[1:], state.tensors), state.steps))
    assert_close(torch.stack(step_through(layer, sequence[1:, L:]), 1), expected[1:, 1:])


def test_functional_states_enter_and_leave_the_module(layer, sequence):
    _, state, _ = layer.steps(sequence[:, :L], layer.initial_state(N))
    layer.set_state(ModuleState(state, L))
    assert_close(layer.forward_steps(sequence[:, L:]), whole_of(layer, sequence)[:, 1:])
    assert layer.get_state().steps == 3 * L


def test_warm_up_records_no_history(layer):
    module = RunningMean(window=3)
    module.warm_up((N, 3))
    assert module.get_state().steps == 2
    assert not module.get_state().tensors.rows.requires_grad
    layer.detaches_state = False
    layer.warm_up((N, E))
    assert not layer.get_state().tensors.key.requires_grad


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_no_value_of_a_tensor_is_asked_for(grad, masked):
    """Fake tensors have none: who asks waits for the device, where there is one."""
    with FakeTensorMode(), torch.set_grad_enabled(grad):
        layer = SingleOutputMultiheadAttention(E, 2, sequence_len=L, query_index=-2)
        x, mask = torch.empty(N, 9, E), torch.empty(L, L) if masked else None
        padding = torch.empty(N, 9, dtype=torch.bool) if masked else None
        for t, row in enumerate(x.unbind(1)):
            column = None if padding is None else padding[:, t]
            out = layer.forward_step(row, key_padding_mask=column, attn_mask=mask)
            assert (out is None) == (t < L - 1)
        out = layer.forward_steps(x, pad_end=True, key_padding_mask=padding, attn_mask=mask)
        assert out.shape == (N, 10, E)
        layer.set_state(layer.get_state())
