"""Causal self-attention: any chunks of a sequence give what the whole gives, also by positions."""

import pytest
import torch
from torch.testing import assert_close

from allocated_elements import AllocatedElements
from attn_continual import select_streams
from attn_continual.returnn import (
    CausalSelfAttention,
    CausalSelfAttentionState,
    ContinualSelfAttention,
    RelPosCausalSelfAttention,
    single_step_dim,
)
from attn_continual.streams import snapshot
from attn_continual.testing import verify_contract
from reference.continual import returnn as reference
from returnn_layers import HEADS, IN, KEY, OUT, POSITIONS, VALUE, in_chunks, made, source

LAYERS = [pytest.param(CausalSelfAttention, {}, id="content")] + [
    pytest.param(RelPosCausalSelfAttention, options, id=name) for name, options in POSITIONS.items()
]
BOTH = [CausalSelfAttention, RelPosCausalSelfAttention]
PARTITIONS = [[11], [1] * 11, [2, 1, 5, 1, 2], [6, 5], [3, 0, 8]]
STEPS = 11


def whole(layer, x):
    window = layer.window or len(x)
    return reference.self_attention(layer, x, lambda i, j: i - window < j <= i)


@pytest.mark.parametrize("window", [None, 4], ids=["growing", "window"])
@pytest.mark.parametrize(("cls", "options"), LAYERS)
def test_chunks_equal_the_whole(cls, options, window):
    layer, x = made(cls, window=window, **options), source(STEPS)
    with torch.no_grad():
        right = whole(layer, x)
        assert_close(layer(x)[0], right, rtol=0, atol=1e-12)
        for lengths in PARTITIONS:
            out, state = in_chunks(layer, x, lengths)
            assert_close(out, right, rtol=0, atol=1e-12)
            assert int(state.accum_axis) == STEPS
            assert state.k_accum.shape[0] == (window or STEPS)
        out, _ = in_chunks(layer.float(), x.float(), [2, 1, 5, 3])
        assert_close(out.double(), right, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("window", [1, 2, 3, 20])
@pytest.mark.parametrize("cls", BOTH)
def test_windows_that_wrap_and_that_never_fill(cls, window):
    layer, x = made(cls, window=window), source(STEPS)
    with torch.no_grad():
        for lengths in PARTITIONS:
            assert_close(in_chunks(layer, x, lengths)[0], whole(layer, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [None, 3], ids=["growing", "window"])
@pytest.mark.parametrize("cls", BOTH)
def test_going_on_after_a_whole_sequence(cls, window):
    layer, x = made(cls, window=window), source(2, STEPS)
    first, state = layer(x[:, :7])
    rest, _ = in_chunks(layer, x[:, 7:], [1, 2, 1], state)
    assert_close(torch.cat([first, rest], 1), layer(x)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [None, 3], ids=["growing", "window"])
@pytest.mark.parametrize("cls", BOTH)
def test_streams_of_different_lengths(cls, window):
    """Streams [2, 2] whose chunks have lengths of their own, 0 too; padding is NaN."""
    layer, x = made(cls, window=window), source(2, 2, STEPS)
    chunks = [[[3, 0], [1, 4]], [[1, 1], [0, 1]], [[0, 4], [4, 2]], [[1, 0], [1, 1]]]
    state = layer.default_initial_state(batch_dims=[2, 2], dtype=x.dtype)
    seen = torch.zeros(2, 2, dtype=torch.int64)
    outs = [[[] for _ in range(2)] for _ in range(2)]
    for lengths in map(torch.tensor, chunks):
        size = int(lengths.max())
        chunk = torch.full((2, 2, size, IN), torch.nan, dtype=x.dtype)
        for a, b in torch.cartesian_prod(torch.arange(2), torch.arange(2)).tolist():
            start, length = int(seen[a, b]), int(lengths[a, b])
            chunk[a, b, :length] = x[a, b, start : start + length]
        if size == 1:
            out, state = layer(chunk[:, :, 0], single_step_dim, state=state, lengths=lengths)
            out = out.unsqueeze(2)
        else:
            out, state = layer(chunk, state=state, lengths=lengths)
        for a, b in torch.cartesian_prod(torch.arange(2), torch.arange(2)).tolist():
            outs[a][b].append(out[a, b, : lengths[a, b]])
            assert not out[a, b, lengths[a, b] :].any()
        seen += lengths
    assert torch.equal(state.accum_axis, seen)
    for a in range(2):
        for b in range(2):
            assert_close(torch.cat(outs[a][b]), layer(x[a, b, : seen[a, b]])[0])


@pytest.mark.parametrize("window", [None, 4], ids=["growing", "window"])
@pytest.mark.parametrize("cls", BOTH)
def test_gradients_of_chunks_equal_those_of_the_whole(cls, window):
    layer, x = made(cls, window=window), source(2, STEPS).requires_grad_()
    weight, inputs = source(2, STEPS, seed=3)[..., :OUT], [x, *layer.parameters()]
    right = torch.autograd.grad(layer(x)[0], inputs, weight)
    for lengths in PARTITIONS:
        out, _ = in_chunks(layer, x, lengths)
        for mine, theirs in zip(torch.autograd.grad(out, inputs, weight), right, strict=True):
            assert_close(mine, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("window", [None, 4], ids=["growing", "window"])
@pytest.mark.parametrize("cls", BOTH)
def test_states_stay_good(cls, window):
    layer, x = made(cls, window=window), source(2, STEPS)
    with torch.no_grad():
        _, state = in_chunks(layer, x[:, :6], [4, 1, 1])
        held = CausalSelfAttentionState(
            *(t.clone() if isinstance(t, torch.Tensor) else t for t in state)
        )
        for _ in range(2):
            rest, _ = in_chunks(layer, x[:, 6:], [2, 1, 2], state)
            assert_close(rest, layer(x)[0][:, 6:], rtol=0, atol=1e-12)
        for before, after in zip(held, state, strict=True):
            same = (
                torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after
            )
            assert same


def test_the_bug_that_chunks_ignore_their_offset():
    """A table of positions that singles out one distance shows which one a later chunk reads."""
    sizes = {"key_dim_total": 2, "value_dim_total": 12, "num_heads": 1}
    layer = RelPosCausalSelfAttention(
        12, None, **sizes, with_bias=False, learnable_pos_emb=True, with_linear_pos=False
    ).double()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.zero_()
        layer.qkv.weight[:, 4:] = torch.eye(12)
        layer.pos_bias_v.fill_(1.0)
        layer.learned_pos_emb.pos_emb[16 - 3] = 100.0  # three steps ago
        x = torch.eye(12, dtype=torch.float64)
        out, _ = in_chunks(layer.eval(), x, [5, 4, 3])
    assert_close(out[3:], x[:-3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("cls", BOTH)
def test_contract(cls):
    layer = made(cls, torch.float64, window=3)
    verify_contract(ContinualSelfAttention(layer), source(3, 8))


@pytest.mark.parametrize("window", [None, 3])
def test_streams_of_a_beam_are_chosen_anew_at_every_step(window):
    """A hypothesis that begins like another goes on from the other's state."""
    layer, x = made(CausalSelfAttention, window=window), source(3, 6)
    chosen = [[0, 0, 1], [2, 0, 0], [1, 1, 2], [0, 2, 2], [2, 1, 0], [0, 1, 2]]
    seen, state = x[:, :0], layer.default_initial_state(batch_dims=[3])
    for step, origins in enumerate(chosen):
        seen = torch.cat([seen, x[:, step : step + 1]], 1)
        out, state = layer(x[:, step], axis=single_step_dim, state=state)
        assert_close(out, layer(seen)[0][:, -1])
        seen, state = seen[origins], select_streams(state, origins)


def test_continual_form_needs_a_window():
    with pytest.raises(ValueError, match="expected a layer with a window"):
        ContinualSelfAttention(made(CausalSelfAttention))


@pytest.mark.parametrize("cls", BOTH)
def test_long_streams_keep_their_size_and_digits(cls):
    layer, x = made(cls, torch.float32, window=5), source(1, 600, dtype=torch.float32)
    state = layer.default_initial_state(batch_dims=[1])
    with torch.no_grad():
        for row in x.unbind(1):
            out, state = layer(row, single_step_dim, state=state)
        assert state.k_accum.shape == (1, 5, HEADS, KEY // HEADS)
        assert_close(out, layer(x[:, -5:])[0][:, -1], rtol=1e-5, atol=1e-5)
        assert snapshot(state.accum_axis).tolist() == [600]


@pytest.mark.parametrize("window", [None, 3], ids=["growing", "window"])
def test_lengths_beyond_the_chunk_are_its_length(window):
    layer, x = made(CausalSelfAttention, window=window), source(2, 6)
    _, state = layer(x[:, :3], lengths=torch.tensor([9, 3]))
    assert state.accum_axis.tolist() == [3, 3]
    rest, _ = layer(x[:, 3:], state=state)
    assert_close(rest, layer(x)[0][:, 3:])


def test_initial_states():
    layer = made(CausalSelfAttention, torch.float32)
    state = layer.default_initial_state(batch_dims=[2, 3])
    assert state.k_accum.shape == (2, 3, 0, HEADS, KEY // HEADS)
    assert state.v_accum.shape == (2, 3, 0, HEADS, VALUE // HEADS)
    assert state.accum_axis == 0
    x = source(2, 3, 4, dtype=torch.float32)
    out, _ = layer(x, state=CausalSelfAttentionState())
    assert torch.equal(out, layer(x)[0])
    windowed = made(CausalSelfAttention, window=3).default_initial_state(
        batch_dims=[2], dtype=torch.float16
    )
    assert windowed.k_accum.shape == (2, 3, HEADS, KEY // HEADS)
    assert windowed.k_accum.dtype == torch.float16
    assert windowed.accum_axis.tolist() == [0, 0]


@pytest.mark.parametrize("cls", BOTH)
def test_states_may_be_narrower(cls):
    layer, x = made(cls, torch.float32, window=4), source(2, STEPS, dtype=torch.float32)
    state = layer.default_initial_state(batch_dims=[2], dtype=torch.float16)
    with torch.no_grad():
        out, state = in_chunks(layer, x, [3, 1, 4, 3], state)
        assert state.k_accum.dtype == torch.float16
        assert out.dtype == torch.float32
        assert_close(out, layer(x)[0], rtol=0, atol=2e-2)


@pytest.mark.parametrize("cls", BOTH)
def test_nothing_has_queries_times_keys(cls):
    layer, x = made(cls, torch.float32), source(1, 2048, dtype=torch.float32)
    with torch.no_grad(), AllocatedElements() as allocated:
        _, state = layer(x[:, :1024], lengths=torch.tensor([1000]))
        layer(x[:, 1024:], state=state)
    assert allocated.largest < HEADS * 1024 * 1024 / 2


def test_what_does_not_fit_is_refused():
    layer, x = made(CausalSelfAttention), source(2, 4)
    with pytest.raises(ValueError, match="a state with single_step_dim, got None"):
        layer(x[:, 0], axis=single_step_dim)
    state = layer.default_initial_state(batch_dims=[3])
    with pytest.raises(ValueError, match=r"expected a state of keys and values \[\[2, 0, 2, 4\]"):
        layer(x, state=state)
    windowed = made(CausalSelfAttention, window=3)
    with pytest.raises(ValueError, match="window=3"):
        windowed(x, state=layer.default_initial_state(batch_dims=[2]))
    _, state = windowed(x)
    with pytest.raises(ValueError, match="holds every step without a window, got 3 slots"):
        layer(x, state=state)
    with pytest.raises(ValueError, match=r"accum_axis, int64 \[\*batch\].*got 3"):
        windowed(x, state=state._replace(accum_axis=3))
    _, state = layer(x)
    with pytest.raises(ValueError, match="the int 4, how many keys there are, got 3"):
        layer(x, state=state._replace(accum_axis=3))
    for steps in (torch.full((2,), 4.0), torch.full((3,), 4)):
        with pytest.raises(ValueError, match=r"accum_axis, int, to broadcast to \[2\], got torch"):
            layer(x, state=state._replace(accum_axis=steps))
    with pytest.raises(ValueError, match=r"expected a state of keys and values .*, \[\]\]"):
        layer(x, state=state._replace(v_accum=None))
    with pytest.raises(TypeError, match="expected a CausalSelfAttentionState, got <class 'tuple'>"):
        layer(x, state=tuple(state))
    for window in (0, 2.5):
        with pytest.raises(ValueError, match="window, the keys that a query sees, of 1 or more"):
            made(CausalSelfAttention, window=window)
