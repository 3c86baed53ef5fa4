"""Recycled positions: which row each step gets, in every mode, and what the state holds."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

from attn_continual import (
    RecyclingPositionalEncoding,
    SingleOutputMultiheadAttention,
)
from attn_continual.testing import verify_contract

C, ROWS, N, T = 6, 7, 3, 5


def make(*, learned=True, **options):
    torch.manual_seed(0)
    return RecyclingPositionalEncoding(C, ROWS, learned, dtype=torch.float64, **options)


def table(encoding):
    (rows,) = encoding.state_dict().values()
    return rows


def expected_rows(encoding, first, steps=T):
    rows = torch.arange(first, first + steps) % ROWS
    return table(encoding)[rows].T.expand(N, -1, -1)


@pytest.mark.parametrize(("learned", "key"), [(True, "pe.weight"), (False, "pe.pattern")])
def test_parameters_are_named_as_in_the_original(learned, key):
    assert list(make(learned=learned).state_dict()) == [key]
    assert len(list(make(learned=learned).parameters())) == int(learned)


@pytest.mark.parametrize("learned", [True, False])
def test_contract(learned):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, C, 20, dtype=torch.float64, generator=generator)
    verify_contract(make(learned=learned), x)


def test_steps_and_chunks_take_the_next_rows_and_begin_anew():
    encoding, zeros = make(), torch.zeros(N, C, T, dtype=torch.float64)
    for first in (0, T, 2 * T):
        assert_close(encoding.forward_steps(zeros), expected_rows(encoding, first))
    for t in range(3 * T, 3 * T + 4):
        out = encoding.forward_step(zeros[:, :, 0])
        assert_close(out, expected_rows(encoding, t, 1)[:, :, 0])
    long = torch.zeros(N, C, 3 * ROWS, dtype=torch.float64)
    assert_close(encoding.forward_steps(long), expected_rows(encoding, 3 * T + 4, 3 * ROWS))


@pytest.mark.parametrize("go_on", [0, 1, 3])
def test_forward_goes_on_by_as_many_rows_as_it_is_told(go_on):
    encoding = make(forward_update_index_steps=go_on)
    zeros = torch.zeros(N, C, T, dtype=torch.float64)
    for call in range(9):
        assert_close(encoding(zeros), expected_rows(encoding, call * go_on))
    assert_close(encoding(zeros, update_index_steps=2), expected_rows(encoding, 9 * go_on))
    assert_close(encoding.forward_steps(zeros), expected_rows(encoding, 9 * go_on + 2))


def test_forward_takes_batches_of_any_size():
    encoding = make()
    for call, streams in enumerate((3, 1, 4)):
        zeros = torch.zeros(streams, C, T, dtype=torch.float64)
        assert_close(encoding(zeros), expected_rows(encoding, call)[:1].expand(streams, -1, -1))


def test_forward_leaves_streams_alone_and_begins_new_ones():
    encoding = make(forward_update_index_steps=3)
    windows, zeros = torch.zeros(5, C, T).double(), torch.zeros(N, C, T).double()
    encoding(windows)
    assert encoding.get_state() is None
    assert_close(encoding.forward_steps(zeros), expected_rows(encoding, 3))
    encoding(windows)
    assert_close(encoding.forward_steps(zeros), expected_rows(encoding, 3 + T))
    encoding.clean_state()
    assert_close(encoding.forward_steps(zeros), expected_rows(encoding, 0))


def test_one_compiled_graph_serves_every_call():
    torch.compiler.reset()
    encoding, graphs = make(), CompileCounter()
    compiled = torch.compile(encoding, fullgraph=True, backend=graphs)
    for call in range(4):
        out = compiled(torch.zeros(N, C, T, dtype=torch.float64))
        assert_close(out, expected_rows(encoding, call))
    assert graphs.frame_count == 1


def test_a_step_keeps_its_row_while_it_moves_through_windows():
    """Windows of `forward`, one further each time, are what steps give."""
    encoding, stepping = make(), make()
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(N, C, 12, dtype=torch.float64, generator=generator)
    whole = stepping.forward_steps(x)
    for start in range(12 - T):
        window = encoding(x[:, :, start : start + T])
        assert_close(window, whole[:, :, start : start + T])


def test_snapshots_hold_the_row():
    encoding, zeros = make(), torch.zeros(N, C, T, dtype=torch.float64)
    assert encoding.get_state() is None
    encoding.forward_steps(zeros)
    state = encoding.get_state()
    first = encoding.forward_steps(zeros)
    encoding.set_state(state)
    assert_close(encoding.forward_steps(zeros), first, rtol=0, atol=0)
    encoding.clean_state()
    assert_close(encoding.forward_steps(zeros), expected_rows(encoding, 0))


def test_streams_are_at_rows_of_their_own():
    encoding = make()
    state = encoding.initial_state(N)
    zeros = torch.zeros(N, C, T, dtype=torch.float64)
    active = torch.tensor([True, False, True])
    _, state, valid = encoding.steps(zeros, state, active=active)
    assert torch.equal(valid, active[:, None].expand(-1, T))
    assert state.row.tolist() == [T, 0, T]
    out, _, _ = encoding.step(zeros[:, :, 0], state)
    assert_close(out, table(encoding)[state.row])


def test_what_it_encodes_goes_into_attention_of_the_same_layout():
    encoding = make()
    attention = SingleOutputMultiheadAttention(
        C, 2, sequence_len=4, embed_dim_second=True, dtype=torch.float64
    )
    x = torch.zeros(N, C, T, dtype=torch.float64)
    assert attention.forward_steps(encoding.forward_steps(x)).shape == (N, C, T - 3)


def test_arguments_are_checked():
    encoding = make()
    with pytest.raises(ValueError, match="at most 7 steps, as many as there are rows, got 8"):
        encoding(torch.zeros(N, C, ROWS + 1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"expected \[N, 6, T\]"):
        encoding.forward_steps(torch.zeros(N, T, C, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"expected \[N, 6, T\]"):
        encoding.forward_step(torch.zeros(N, C, T, dtype=torch.float64))
    with pytest.raises(ValueError, match="num_embeds of 1 or more"):
        RecyclingPositionalEncoding(C, 0)
