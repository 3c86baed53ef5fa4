"""Steps in place, which one call of the core takes, against the functional ones."""

import pytest
import torch

from attn_continual import window_attention
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
@pytest.mark.parametrize("with_all", [False, True])
def test_steps_in_place_are_the_functional_ones(calls, window, slots, dtype, with_all):
    generator = torch.Generator().manual_seed(0)
    state = window.initial_state(N, H, K, KV, num_slots=slots, dtype=dtype)
    own = snapshot(state)
    for step in range(2 * slots + 3):
        rows = draw_rows(generator, dtype, padded=with_all)
        mask_row = torch.randn(N, H, window.length, generator=generator) if with_all else None
        active = torch.rand(N, generator=generator) < 0.7 if with_all else None
        options = {"mask_row": mask_row, "active": active}
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


@pytest.mark.parametrize("reason", ["gradients", "dropout", "extra"])
def test_what_the_core_does_not_do_goes_the_other_way(calls, reason):
    window = Window(3, dropout=0.5 if reason == "dropout" else 0.0)
    state = window.initial_state(N, H, K, KV)
    rows = draw_rows(torch.Generator().manual_seed(0), torch.float32, padded=False)
    extra = ExtraRows(torch.zeros(1, 1, H, K), torch.zeros(1, 1, H, KV))
    with torch.set_grad_enabled(reason == "gradients"):
        out, _, _ = window.step(
            rows, state, extra=extra if reason == "extra" else None, in_place=True
        )
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
