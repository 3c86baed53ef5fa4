"""What goes wrong in continual-inference 1.2.4, done right: one test for each of its bugs."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from attn_continual import SingleOutputMultiheadAttention, call_mode
from attn_continual.streams import tensors_of

L, N, E = 4, 3, 8


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return SingleOutputMultiheadAttention(E, 2, sequence_len=L, dtype=torch.float64).eval()


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def outputs_of_steps(layer, x):
    return [layer.forward_step(row) for row in x.unbind(1)]


def test_a_snapshot_is_no_reference_to_the_state(layer):
    x = random(N, L + 2, E)
    with torch.no_grad():  # the state is then written in place
        outputs_of_steps(layer, x[:, : L - 1])
        state = layer.get_state()
        first = outputs_of_steps(layer, x[:, L - 1 :])
        layer.set_state(state)
        second = outputs_of_steps(layer, x[:, L - 1 :])
        layer.set_state(state)
        layer.forward_steps(x)
        layer.set_state(state)
        third = outputs_of_steps(layer, x[:, L - 1 :])
    assert all(out is not None for out in first)
    assert_close(first, second, rtol=0, atol=0)
    assert_close(first, third, rtol=0, atol=0)


@pytest.mark.parametrize("grad", [True, False])
def test_a_new_layer_takes_steps_that_leave_no_trace(layer, grad):
    x = random(N, L, E)
    with torch.set_grad_enabled(grad):
        assert layer.forward_step(x[:, 0], update_state=False) is None
        out = layer.forward_steps(x, update_state=False)
        assert layer.get_state() is None
        assert_close(layer.forward_steps(x), out)


def test_warm_up_leaves_one_step_to_the_first_output(layer):
    layer.warm_up((N, E))
    assert layer.get_state().steps == L - 1
    assert layer.forward_step(random(N, E)).shape == (N, E)


def test_time_first_chunks_have_three_axes(layer):
    time_first = SingleOutputMultiheadAttention(E, 2, sequence_len=L, batch_first=False).double()
    time_first.load_state_dict(layer.state_dict())
    x = random(N, 7, E)
    out = time_first.eval().forward_steps(x.transpose(0, 1))
    assert_close(out, layer.forward_steps(x).transpose(0, 1))


def test_a_residual_around_whole_windows_adds_like_to_like(layer):
    x = random(N, 9, E)
    expected = torch.stack(outputs_of_steps(layer, x)[L - 1 :], 1) + x[:, L - 1 :]
    layer.clean_state()
    assert_close(layer.forward_steps(x) + x[:, layer.warm_up_steps :], expected)


def from_pickle(layer):
    return pickle.loads(pickle.dumps(layer))  # noqa: S301


@pytest.mark.parametrize("duplicate", [copy.deepcopy, from_pickle])
def test_copies_are_made_after_a_mode_was_set(layer, duplicate):
    layer.call_mode = "forward_step"
    with call_mode("forward_steps"):
        other = duplicate(layer)
    x = random(N, L, E)
    outs = [other(row) for row in x.unbind(1)]
    assert_close(outs[-1], layer.forward_steps(x)[:, -1])


def test_the_outer_context_comes_back(layer):
    x = random(N, E)
    with call_mode("forward_step"):
        with call_mode("forward_steps"):
            assert layer(x[:, None]) is None
        assert layer(x) is None
    assert layer.get_state().steps == 2


def test_the_state_keeps_no_graph(layer):
    x = random(N, 3 * L, E).requires_grad_()
    for t, row in enumerate(x.unbind(1)):
        out = layer.forward_step(row)
        assert not any(tensor.requires_grad for tensor in tensors_of(layer.get_state().tensors))
        if out is not None:
            (grad,) = torch.autograd.grad(out.square().sum(), x)
            assert grad[:, t].abs().sum() > 0
            assert grad[:, :t].abs().sum() == 0
            copy.deepcopy(layer)


def test_a_chunk_of_no_steps_has_no_output(layer):
    assert layer.forward_steps(random(N, 0, E)) is None
    layer.forward_steps(random(N, L, E))
    assert layer.forward_steps(random(N, 0, E)) is None
    assert layer.get_state().steps == L


def test_padding_and_masks_of_steps_are_not_swallowed(layer):
    x = random(N, L, E)
    plain = layer.forward_steps(x, update_state=False)
    padding = torch.zeros(N, L, dtype=torch.bool)
    padding[:, 0] = True
    mask = torch.zeros(L, L)
    mask[-1, 0] = -torch.inf
    padded = layer.forward_steps(x, update_state=False, key_padding_mask=padding)
    assert (padded - plain).abs().max() > 1e-3
    assert_close(layer.forward_steps(x, attn_mask=mask), padded)


def test_forward_of_the_window_is_what_steps_give(layer):
    x = random(N, L, E)
    out, weights = layer(x)
    assert weights.shape == (N, 1, L)
    assert_close(outputs_of_steps(layer, x)[-1], out[:, 0])
