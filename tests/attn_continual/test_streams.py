"""States of many streams, chosen, stacked, reset and held."""

import io
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from attn_continual import returnn
from attn_continual.streams import (
    choose_streams,
    detach,
    map_state,
    reset_streams,
    select_streams,
    snapshot,
    stack_streams,
    tensors_of,
)
from continual_layers import CASES, make


class Inner(NamedTuple):
    rows: Tensor
    position: Tensor


class Outer(NamedTuple):
    inner: Inner
    pair: tuple[Tensor, Inner]


def state_of(*streams):
    """Return a nested state in which every number says which stream it belongs to."""
    position = torch.tensor(streams)
    rows = position[:, None, None] + torch.zeros(1, 2, 3)
    return Outer(Inner(rows, position), (position > 1, Inner(rows[:, 0] + 0.5, -position)))


def assert_same(got, expected):
    assert type(got) is type(expected)
    pairs = list(zip(tensors_of(got), tensors_of(expected), strict=True))
    assert len(pairs) == 5
    for a, b in pairs:
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_structure_is_kept():
    got = map_state(lambda x: x, state_of(1, 2))
    assert isinstance(got, Outer)
    assert isinstance(got.inner, Inner)
    assert isinstance(got.pair[1], Inner)
    assert map_state(torch.neg, torch.ones(2)).tolist() == [-1.0, -1.0]
    assert map_state(torch.neg, ()) == ()


def test_streams_are_selected_by_number_and_by_mask():
    state = state_of(0, 1, 2, 3)
    assert_same(select_streams(state, [3, 1]), state_of(3, 1))
    assert_same(select_streams(state, torch.tensor([2, 2])), state_of(2, 2))
    mask = torch.tensor([True, False, False, True])
    assert_same(select_streams(state, mask), state_of(0, 3))
    assert_same(select_streams(state, [True, False, False, True]), state_of(0, 3))
    assert [x.shape[0] for x in tensors_of(select_streams(state, []))] == [0] * 5


def test_streams_are_stacked_in_order():
    assert_same(stack_streams([state_of(4), state_of(1, 2), state_of(0)]), state_of(4, 1, 2, 0))


def test_an_int_is_of_all_streams():
    state = (torch.arange(3), 5)
    assert tensors_of(state) == [state[0]]
    chosen, steps = select_streams(state, [2, 0])
    assert (chosen.tolist(), steps) == ([2, 0], 5)
    stacked, steps = stack_streams([state, state])
    assert (stacked.tolist(), steps) == ([0, 1, 2, 0, 1, 2], 5)
    with pytest.raises(ValueError, match="expected streams that have seen as many steps"):
        stack_streams([state, (torch.arange(3), 4)])


def test_streams_of_states_of_different_sizes_are_refused():
    layer = returnn.CausalSelfAttention(4, 4, key_dim_total=4, value_dim_total=4, num_heads=2)
    older, newer = (layer(torch.randn(2, steps, 4), 1)[1] for steps in (3, 1))
    uneven = layer(torch.randn(2, 3, 4), 1, lengths=torch.tensor([3, 1]))[1]
    new, mask = layer.default_initial_state(batch_dims=[2]), torch.tensor([True, False])
    for state, other in ((older, newer), (older, uneven), (newer, new)):
        with pytest.raises(ValueError, match="expected states of one size but for their streams"):
            stack_streams([state, other])
        with pytest.raises(ValueError, match="expected states of one size but for their streams"):
            reset_streams(state, other, mask)


def test_what_is_no_state_and_no_mask_of_its_streams():
    state = state_of(0, 1, 2)
    with pytest.raises(
        ValueError, match=r"select_streams: expected .* along one axis, got \[1, 2\]"
    ):
        select_streams(state, torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="expected a state or more, got none"):
        stack_streams([])
    for mask in (torch.tensor([True]), torch.tensor([0, 1, 1]), torch.ones(3, 1) > 0):
        with pytest.raises(ValueError, match=r"expected a mask, bool \[3\], got"):
            reset_streams(state, state_of(3, 4, 5), mask)
    with pytest.raises(TypeError, match="expected a tensor, or a tuple of states, got"):
        tensors_of((state, "no tensor"))
    with pytest.raises(TypeError, match="expected a tensor, or a tuple of states, got"):
        map_state(torch.neg, None)


def test_streams_are_chosen_and_reset():
    mask = torch.tensor([False, True, True])
    assert_same(choose_streams(mask, state_of(7, 8, 9), state_of(1, 2, 3)), state_of(1, 8, 9))
    assert_same(reset_streams(state_of(7, 8, 9), state_of(0, 0, 0), mask), state_of(7, 0, 0))


def test_snapshots_have_memory_of_their_own():
    state = state_of(1, 2)
    copy = snapshot(state)
    for tensor in tensors_of(state):
        tensor.zero_()
    assert_same(copy, state_of(1, 2))


def test_detached_states_share_memory_without_history():
    x = torch.ones(2, requires_grad=True)
    (doubled,) = detach((2 * x,))
    assert not doubled.requires_grad
    assert detach(doubled).data_ptr() == doubled.data_ptr()


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_saved_states_load_as_weights_do(name):
    layer, x = make(name, torch.float64)
    first, second = x.split([x.shape[layer.time_axis] - 2, 2], layer.time_axis)
    layer.forward_steps(first)
    state = saved_and_loaded(layer.get_state())
    assert type(state.tensors) is type(layer.get_state().tensors)
    expected = layer.forward_steps(second)
    layer.clean_state()
    layer.set_state(state)
    assert torch.equal(layer.forward_steps(second), expected)


def test_encoder_states_load_as_weights_do():
    sizes = {"key_dim_total": 4, "value_dim_total": 4, "num_heads": 2}
    layer = returnn.CrossAttention(6, 6, 5, **sizes)
    state = layer.transform_encoder(torch.randn(2, 3, 6), axis=1)
    loaded = saved_and_loaded(state)
    assert type(loaded) is type(state)
    assert torch.equal(loaded[0], state[0])


def test_states_of_other_numbers_of_streams_are_refused():
    mask = torch.tensor([True, False, False])
    with pytest.raises(ValueError, match="as many streams, got 2 and 3"):
        reset_streams(state_of(7, 8, 9), state_of(0, 0), mask)
