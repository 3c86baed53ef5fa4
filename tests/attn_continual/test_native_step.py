"""Steps in place, which one call of the core takes, against the functional ones."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from attn_continual import SingleOutputMultiheadAttention, single_output, window_attention
from attn_continual.streams import snapshot, tensors_of
from attn_continual.window_attention import ExtraRows, Rows, Window

N, H, K, KV = 3, 2, 4, 5


def draw_rows(generator, dtype, *, padded):
    shape = (N, 1, H)
    query, key, value = (
        torch.randn(*shape, width, generator=generator).to(dtype) for width in (K, K, KV)
    )
    padding = torch.rand(N, 1, generator=generator) < 0.3 if padded else None
    return Rows(query, key, value, padding)


@pytest.fixture
def calls(monkeypatch):
    """The native steps that were taken."""
    taken = []
    native = window_attention.attention_step_

    def count(*inputs, **options):
        taken.append(inputs)
        return native(*inputs, **options)

    monkeypatch.setattr(window_attention, "attention_step_", count)
    return taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("window", "slots"),
    [
        (Window(4), 4),
        (Window(4), 7),
        (Window(1), 1),
        (Window(4, delay=2), 4),
        (Window(3, delay=2, waits=False), 5),
    ],
)
@pytest.mark.parametrize("has_extra", [False, True])
@pytest.mark.parametrize("with_all", [False, True])
def test_steps_in_place_are_the_functional_ones(calls, window, slots, dtype, with_all, has_extra):
    generator = torch.Generator().manual_seed(0)
    state = window.initial_state(N, H, K, KV, num_slots=slots, dtype=dtype)
    own = snapshot(state)
    extra = None
    if has_extra:
        extra = ExtraRows(*(torch.randn(2, H, width, generator=generator) for width in (K, KV)))
    for step in range(2 * slots + 3):
        rows = draw_rows(generator, dtype, padded=with_all)
        mask_row = torch.randn(N, H, window.length, generator=generator) if with_all else None
        active = torch.rand(N, generator=generator) < 0.7 if with_all else None
        options = {"mask_row": mask_row, "extra": extra, "active": active}
        with torch.no_grad():
            expected, state, is_valid = window.step(rows, state, **options)
            out, kept, is_valid_too = window.step(rows, own, in_place=True, **options)
        assert len(calls) == step + 1
        for before, after in zip(tensors_of(own), tensors_of(kept), strict=True):
            assert before is after
        for ours, theirs in zip(tensors_of(own), tensors_of(state), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(is_valid, is_valid_too)
        taking = slice(None) if active is None else active
        torch.testing.assert_close(out[taking], expected[taking])


def test_rows_of_another_dtype_are_converted(calls):
    window = Window(3)
    state = window.initial_state(N, H, K, KV)
    rows = draw_rows(torch.Generator().manual_seed(0), torch.bfloat16, padded=False)
    with torch.no_grad():
        expected, _, _ = window.step(rows, state)
        out, _, _ = window.step(rows, state, in_place=True)
    assert calls
    torch.testing.assert_close(out, expected)


def test_steps_on_a_gpu_are_one_call(calls):
    window = Window(3, delay=1)
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        state = window.initial_state(N, H, K, KV)
        rows = Rows(*(torch.empty(N, 1, H, width) for width in (K, K, KV)), None)
        out, _, _ = window.step(rows, state, in_place=True)
    assert len(calls) == 1
    assert out.device.type == "cuda"


@pytest.mark.parametrize("reason", ["gradients", "dropout"])
def test_what_the_core_does_not_do_goes_the_other_way(calls, reason):
    window = Window(3, dropout=0.5 if reason == "dropout" else 0.0)
    state = window.initial_state(N, H, K, KV)
    rows = draw_rows(torch.Generator().manual_seed(0), torch.float32, padded=False)
    with torch.set_grad_enabled(reason == "gradients"):
        out, _, _ = window.step(rows, state, in_place=True)
    assert out.shape == (N, 1, H, KV)
    assert not calls


def test_one_graph_across_the_fill_boundary():
    window = Window(3, delay=1)
    compiled = torch.compile(
        lambda rows, state: window.step(rows, state, in_place=True),
        fullgraph=True,
        backend="aot_eager",
    )
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    state = window.initial_state(N, H, K, KV)
    own = snapshot(state)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(8):
            rows = draw_rows(generator, torch.float32, padded=True)
            expected, state, is_valid = window.step(rows, state)
            out, own, is_valid_too = compiled(rows, own)
            torch.testing.assert_close(out, expected)
            assert torch.equal(is_valid, is_valid_too)
            for ours, theirs in zip(tensors_of(own), tensors_of(state), strict=True):
                assert torch.equal(ours, theirs)


@pytest.fixture
def layer_calls(monkeypatch):
    """The native steps of whole layers that were taken."""
    taken = []
    native = single_output.multihead_attention_step_

    def count(*inputs, **options):
        taken.append(inputs)
        return native(*inputs, **options)

    monkeypatch.setattr(single_output, "multihead_attention_step_", count)
    return taken


@torch.no_grad()
def make_layer(**options):
    torch.manual_seed(0)
    layer = SingleOutputMultiheadAttention(H * K, H, sequence_len=4, dtype=torch.float64, **options)
    layer.forward_step(torch.randn(N, H * K, dtype=torch.float64))
    return layer.eval()


def draw_step(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, H * K, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bias": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"add_bias_kv": True, "add_zero_attn": True},
        {"query_index": -2},
        {"query_index": 0, "add_bias_kv": True},
    ],
    ids=str,
)
@torch.no_grad()
def test_steps_of_a_layer_are_one_call(layer_calls, settings):
    layer = make_layer(**settings)
    state = layer.get_state().tensors
    for step in range(9):
        x = draw_step(step)
        expected, state, is_valid = layer.step(x, state)
        before = len(layer_calls)
        own = snapshot(layer.get_state().tensors)
        out, kept, is_valid_too = layer.step(x, own, in_place=True)
        from_module = layer.forward_step(x)
        assert len(layer_calls) == before + 2
        assert torch.equal(is_valid, is_valid_too)
        assert (from_module is not None) == bool(is_valid.all())
        torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)
        for tensors in (kept, layer.get_state().tensors):
            for ours, theirs in zip(tensors_of(tensors), tensors_of(state), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(from_module, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "inputs"),
    [
        ({}, {"key": draw_step(5)}),
        ({}, {"key_padding_mask": torch.zeros(N, dtype=torch.bool)}),
        ({}, {"attn_mask": torch.zeros(4, 4)}),
        ({}, {"update_state": False}),
    ],
)
@torch.no_grad()
def test_other_steps_of_a_layer_go_the_long_way(layer_calls, settings, inputs):
    layer = make_layer(**settings)
    layer_calls.clear()
    layer.forward_step(draw_step(), **inputs)
    assert not layer_calls


@pytest.mark.parametrize("query_index", [-1, -3])
@pytest.mark.parametrize("reason", ["gradients", "autocast", "dropout"])
def test_what_one_call_does_not_do_goes_the_long_way(layer_calls, reason, query_index):
    layer = make_layer(query_index=query_index, dropout=0.5)
    layer.train(reason == "dropout")
    layer_calls.clear()
    with (
        torch.set_grad_enabled(reason == "gradients"),
        torch.autocast("cpu", torch.bfloat16, enabled=reason == "autocast"),
    ):
        outs = [layer.forward_step(draw_step(step)) for step in range(5)]
    assert [out is None for out in outs] == [True, True, False, False, False]
    assert outs[-1].requires_grad == (reason == "gradients")
    assert not layer_calls


@torch.no_grad()
def test_parametrized_weights_are_computed(layer_calls):
    layer, doubled = make_layer(), make_layer()
    twice = torch.nn.Module()
    twice.forward = lambda weight: 2 * weight
    torch.nn.utils.parametrize.register_parametrization(doubled, "in_proj_weight", twice)
    layer.in_proj_weight.mul_(2)
    layer.clean_state()
    doubled.clean_state()
    layer_calls.clear()
    for step in range(6):
        out, expected = (each.forward_step(draw_step(step)) for each in (doubled, layer))
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)
    assert len(layer_calls) == 6  # the other layer's


@torch.no_grad()
def test_rows_and_weights_that_lie_otherwise():
    layer, strided = make_layer(), make_layer()
    strided.out_proj.weight = torch.nn.Parameter(layer.out_proj.weight.T.contiguous().T)
    for step in range(6):
        x = draw_step(step)
        columns = x.T.contiguous().T
        expected, out = layer.forward_step(x), strided.forward_step(columns)
        assert (out is None) == (expected is None)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(layer.forward_step(columns), strided.forward_step(x))
