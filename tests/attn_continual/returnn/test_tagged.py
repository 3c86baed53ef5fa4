"""Calls as RETURNN's users write them, with dims, against the same with torch tensors."""

import copy
import doctest
import importlib
import itertools
import pickle

import pytest
import torch
from torch.testing import assert_close

import attn_continual.returnn as rf
from attn_continual.returnn import Dim, Tensor, batch_dim, single_step_dim

LENGTHS = [5, 3, 0]
DOCUMENTED = [
    "causal_self_attention",
    "continual_self_attention",
    "cross_attention",
    "dim",
    "self_attention",
    "tagged_tensor",
]
IN, OUT, KEY, VALUE = (
    Dim(n, name=name) for n, name in ((6, "in"), (5, "out"), (8, "k"), (10, "v"))
)
SIZES = {"key_dim_total": KEY, "value_dim_total": VALUE, "num_heads": 2}


def rows(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def sequences():
    """Return a source [batch, time, in] with lengths, and its dim of time."""
    lengths = Tensor("time", [batch_dim], dtype="int32", raw_tensor=torch.tensor(LENGTHS).int())
    time_dim = Dim(lengths, name="time")
    raw = rows(len(LENGTHS), max(LENGTHS), IN.dimension)
    return Tensor("source", [batch_dim, time_dim, IN], raw_tensor=raw), time_dim


def made(cls, *arguments, **options):
    torch.manual_seed(0)
    return cls(*(arguments or (IN, OUT)), **SIZES, **options).double().eval()


def orders(x):
    return [x.copy_transpose(dims) for dims in itertools.permutations(x.dims)]


@pytest.mark.parametrize("cls", [rf.SelfAttention, rf.RelPosSelfAttention])
def test_self_attention(cls):
    att = made(cls)
    source, time_dim = sequences()
    right = att(source.raw_tensor, lengths=torch.tensor(LENGTHS))
    for tagged in orders(source):
        out = att(tagged, axis=time_dim)
        assert out.dims_set == {batch_dim, time_dim, OUT}
        assert out.feature_dim is att.out_dim is OUT
        assert_close(out.copy_compatible_to_dims_raw([batch_dim, time_dim, OUT]), right)


def test_self_attention_written_out():
    """forward_qkv, replace_dim, dot_attention, as the documentation of dot_attention tells."""
    att = made(rf.SelfAttention)
    source, time_dim = sequences()
    q, k, v = att.forward_qkv(source)
    k, kv_axis = rf.replace_dim(k, in_dim=time_dim)
    v, _ = rf.replace_dim(v, in_dim=time_dim, out_dim=kv_axis)
    assert kv_axis is not time_dim
    assert kv_axis.lengths is time_dim.lengths
    attended = rf.dot_attention(q, k, v, key_dim=att.key_dim_per_head, axis=kv_axis)
    assert attended.dims_set == {batch_dim, time_dim, att.num_heads, att.value_dim_per_head}
    out = att.attention(q, k, v, kv_axis=kv_axis)
    for n, length in enumerate(LENGTHS):
        right = att(source, axis=time_dim).raw_tensor[n, :length]
        assert_close(out.copy_transpose([batch_dim, time_dim, OUT]).raw_tensor[n, :length], right)


@pytest.mark.parametrize("window", [None, 3], ids=["growing", "window"])
@pytest.mark.parametrize("cls", [rf.CausalSelfAttention, rf.RelPosCausalSelfAttention])
def test_causal_self_attention_in_chunks_and_steps(cls, window):
    att = made(cls, window=window)
    source, time_dim = sequences()
    whole, after = att(source, axis=time_dim)
    assert whole.dims == (batch_dim, time_dim, OUT)
    assert after.accum_axis.lengths.raw_tensor.tolist() == LENGTHS
    state = att.default_initial_state(batch_dims=[batch_dim])
    assert state.k_accum.dims == (
        batch_dim,
        state.accum_axis,
        att.num_heads,
        att.key_dim_per_head,
    )
    right, _ = att(source.raw_tensor)
    chunk_dim = Dim(2, name="chunk")
    first = Tensor(
        "first", [chunk_dim, IN, batch_dim], raw_tensor=source.raw_tensor[:, :2].permute(1, 2, 0)
    )
    out, state = att(first, axis=chunk_dim, state=state)
    assert_close(out.copy_transpose([batch_dim, chunk_dim, OUT]).raw_tensor, right[:, :2])
    for t in range(2, 5):
        step = Tensor("step", [IN, batch_dim], raw_tensor=source.raw_tensor[:, t].T)
        out, state = att(step, axis=single_step_dim, state=state)
        assert_close(out.copy_transpose([batch_dim, OUT]).raw_tensor, right[:, t])
    rest = Tensor("rest", [batch_dim, chunk_dim, IN], raw_tensor=rows(3, 2, 6, seed=1))
    out, _ = att(rest, axis=chunk_dim, state=after)
    for n, length in enumerate(LENGTHS):
        row = torch.cat([source.raw_tensor[n, :length], rest.raw_tensor[n]])
        assert_close(out.raw_tensor[n], att(row)[0][length:])


def test_state_by_keywords():
    att = made(rf.CausalSelfAttention)
    source, time_dim = sequences()
    _, state = att(source, axis=time_dim)
    same = rf.CausalSelfAttentionState(
        k_accum=state.k_accum, v_accum=state.v_accum, accum_axis=state.accum_axis
    )
    step = Tensor("step", [batch_dim, IN], raw_tensor=rows(3, 6, seed=2))
    out, _ = att(step, axis=single_step_dim, state=same)
    assert torch.equal(out.raw_tensor, att(step, axis=single_step_dim, state=state)[0].raw_tensor)
    begun, _ = att(source, axis=time_dim, state=rf.CausalSelfAttentionState())
    assert torch.equal(begun.raw_tensor, att(source, axis=time_dim)[0].raw_tensor)


def test_cross_attention():
    encoder_dim, target_dim, beam = Dim(7, name="encoder"), Dim(4), Dim(2)
    att = made(rf.CrossAttention, encoder_dim, IN, OUT)
    _, time_dim = sequences()
    raw = rows(3, 5, 7, seed=1)
    encoder = Tensor("encoder", [batch_dim, time_dim, encoder_dim], raw_tensor=raw)
    target = Tensor("target", [batch_dim, beam, target_dim, IN], raw_tensor=rows(3, 2, 4, 6))
    out = att(target, att.transform_encoder(encoder, axis=time_dim))
    plain = att.transform_encoder(raw, lengths=torch.tensor(LENGTHS))
    for b in range(2):
        right = att(target.raw_tensor[:, b], plain)
        order = [beam, batch_dim, target_dim, OUT]
        assert_close(out.copy_compatible_to_dims_raw(order)[b], right)
    with pytest.raises(ValueError, match=r"expected .*beam.* among its dims"):
        att.transform_encoder(encoder, axis=Dim(2, name="beam"))


def test_dot_attention_by_roles_of_dims():
    """Beams and places of the query are its own, heads are shared, and order does not matter."""
    _, time_dim = sequences()
    beam, place, heads = Dim(2), Dim(4), Dim(3)
    q = Tensor("q", [batch_dim, beam, place, heads, KEY], raw_tensor=rows(3, 2, 4, 3, 8))
    k = Tensor("k", [batch_dim, time_dim, heads, KEY], raw_tensor=rows(3, 5, 3, 8, seed=1))
    v = Tensor("v", [batch_dim, time_dim, heads, VALUE], raw_tensor=rows(3, 5, 3, 10, seed=2))
    order = [batch_dim, heads, beam, place, VALUE]
    right = rf.dot_attention(
        q.raw_tensor.permute(0, 3, 1, 2, 4).flatten(2, 3),
        k.raw_tensor.transpose(1, 2),
        v.raw_tensor.transpose(1, 2),
        lengths=torch.tensor(LENGTHS)[:, None],
    ).unflatten(2, (2, 4))
    for q_, k_, v_ in zip(orders(q)[::17], orders(k)[::3], orders(v)[::-3], strict=False):
        out = rf.dot_attention(q_, k_, v_, key_dim=KEY, axis=time_dim)
        assert_close(out.copy_compatible_to_dims_raw(order), right)


def test_dot_attention_whose_query_has_the_axis_or_nothing():
    source, time_dim = sequences()
    out = rf.dot_attention(source, source, source, key_dim=IN, axis=time_dim)
    raw = source.raw_tensor
    right = rf.dot_attention(raw, raw, raw, lengths=torch.tensor(LENGTHS))
    assert_close(out.copy_transpose([batch_dim, time_dim, IN]).raw_tensor, right)
    out = rf.dot_attention(
        source, source, source, key_dim=IN, axis=time_dim, causal_query_spatial_dim=time_dim
    )
    lengths = torch.tensor(LENGTHS)
    right = rf.dot_attention(raw, raw, raw, causal_query_spatial_dim=-2, lengths=lengths)
    assert_close(out.copy_transpose([batch_dim, time_dim, IN]).raw_tensor, right)
    one = Tensor("one", [IN], raw_tensor=raw[0, 0])
    out = rf.dot_attention(one, source, source, key_dim=IN, axis=time_dim)
    assert out.dims == (batch_dim, IN)
    for n, length in enumerate(LENGTHS[:2]):
        right = rf.dot_attention(raw[0, 0], raw[n, :length], raw[n, :length])
        assert_close(out.raw_tensor[n], right)


def test_lengths_of_a_dim_that_values_alone_have():
    width, keys = Dim(3), Tensor("k", [Dim(5, name="place"), KEY], raw_tensor=rows(5, 8))
    lengths = Tensor("lengths", [batch_dim], raw_tensor=torch.tensor([5, 2]))
    history = Dim(lengths, name="history")
    keys, _ = rf.replace_dim(keys, in_dim=keys.dims[0], out_dim=history)
    values = Tensor("v", [batch_dim, history, width], raw_tensor=rows(2, 5, 3, seed=1))
    one = Tensor("q", [KEY], raw_tensor=rows(8, seed=2))
    out = rf.dot_attention(one, keys, values, key_dim=KEY, axis=history)
    for n, length in enumerate((5, 2)):
        right = rf.dot_attention(
            one.raw_tensor, keys.raw_tensor[:length], values.raw_tensor[n, :length]
        )
        assert_close(out.copy_transpose([batch_dim, width]).raw_tensor[n], right)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("begin", ["default_initial_state", "empty"])
def test_steps_of_a_single_sequence(window, begin):
    layer = rf.CausalSelfAttention(
        IN, None, key_dim_total=8, value_dim_total=8, num_heads=2, window=window
    )
    layer = layer.double().eval()
    raw = rows(4, IN.size)
    state = rf.CausalSelfAttentionState()
    if begin == "default_initial_state":
        state = layer.default_initial_state(batch_dims=[])
    for step, right in enumerate(layer(raw)[0]):
        row = Tensor("row", [IN], raw_tensor=raw[step])
        out, state = layer(row, axis=single_step_dim, state=state)
        assert_close(out.raw_tensor, right)


def test_lengths_that_depend_on_the_query():
    """RETURNN's way to say causal: the keys of query i have a length of i + 1."""
    place, time_dim = Dim(4), Dim(4)
    lengths = Tensor("lengths", [place], raw_tensor=torch.arange(1, 5))
    history = Dim(lengths, name="history")
    q = Tensor("q", [batch_dim, place, KEY], raw_tensor=rows(3, 4, 8))
    k, _ = rf.replace_dim(
        Tensor("k", [batch_dim, time_dim, KEY], raw_tensor=rows(3, 4, 8, seed=1)),
        in_dim=time_dim,
        out_dim=history,
    )
    out = rf.dot_attention(q, k, k, key_dim=KEY, axis=history)
    right = rf.dot_attention(q.raw_tensor, k.raw_tensor, k.raw_tensor, causal_query_spatial_dim=-2)
    assert_close(out.copy_transpose([batch_dim, place, KEY]).raw_tensor, right)


def test_dims_are_told_apart_by_what_they_are():
    one, other = Dim(3, name="one"), Dim(3, name="one")
    assert one != other
    square = Tensor("square", [one, other], raw_tensor=torch.arange(9).view(3, 3))
    turned = square.copy_compatible_to_dims_raw([other, one])
    assert torch.equal(turned, square.raw_tensor.T)
    with pytest.raises(ValueError, match="as many different dims as axes"):
        Tensor("twice", [one, one], raw_tensor=torch.zeros(3, 3))
    with pytest.raises(ValueError, match="expected 3 places along Dim"):
        Tensor("long", [one], raw_tensor=torch.zeros(4))
    with pytest.raises(ValueError, match="expected float64, got float32"):
        Tensor("single", [one], "float64", raw_tensor=torch.zeros(3))
    free = Dim(None)
    q, k = (Tensor("x", [free, one], raw_tensor=torch.zeros(n, 3)) for n in (3, 4))
    with pytest.raises(ValueError, match=r"one size of .*, got 3 and 4"):
        rf.dot_attention(q, q, k, key_dim=one, axis=free)


def test_sizes_of_dims():
    with pytest.raises(
        TypeError, match="Dim: expected an int, lengths as a tagged tensor, or None"
    ):
        Dim("time")
    free = Dim(None, name="free")
    with pytest.raises(ValueError, match=r"expected .*free.* to have a size"):
        _ = free.size
    Tensor("x", [free], raw_tensor=torch.zeros(4))
    assert free.size == int(free) == 4
    assert free.dimension is None
    assert Dim(6).div_left(2).dimension == 3
    assert Dim(6).div_left(Dim(3)).size == 2
    with pytest.raises(ValueError, match="to be a multiple of 4, got 6 and 4"):
        Dim(6).div_left(4)
    lengths = Tensor("lengths", [free], raw_tensor=torch.tensor([2, 7, 1, 0]))
    assert Dim(lengths).size == 7


def test_copies_know_the_same_dims():
    att = made(rf.SelfAttention)
    source, time_dim = sequences()
    out = copy.deepcopy(att)(source, axis=time_dim)
    assert torch.equal(out.raw_tensor, att(source, axis=time_dim).raw_tensor)
    for special in (single_step_dim, batch_dim):
        assert pickle.loads(pickle.dumps(special)) is special  # noqa: S301  our own


def test_what_does_not_fit_is_refused():
    att = made(rf.SelfAttention)
    source, time_dim = sequences()
    with pytest.raises(TypeError, match="expected axis, a Dim, with a tagged source, got 1"):
        att(source, axis=1)
    with pytest.raises(ValueError, match=r"expected .*other.* among its dims"):
        att(source, axis=Dim(5, name="other"))
    with pytest.raises(ValueError, match="expected no dims but"):
        source.copy_compatible_to_dims_raw([batch_dim, time_dim])
    q = Tensor("q", [batch_dim, Dim(2), IN], raw_tensor=rows(3, 2, 6))
    options = {"key_dim": IN, "axis": time_dim, "causal_query_spatial_dim": time_dim}
    with pytest.raises(ValueError, match="expected no queries but along"):
        rf.dot_attention(q, source, source, **options)
    assert rf.convert_to_tensor(source) is source
    assert repr(source).startswith("TaggedTensor('source', [Dim('batch', 3), Dim('time', 5)")


@pytest.mark.parametrize("name", DOCUMENTED)
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"attn_continual.returnn.{name}")
    names = {**vars(rf), **vars(module), "torch": torch}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0
