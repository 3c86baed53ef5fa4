"""`multihead_attention_step_` against its parts, torch's products among them, and its refusals."""

from typing import NamedTuple

import pytest
import torch
from torch.nn.functional import linear

import attn_ops as xops

B, R, H, K, KV, E, F = 3, 5, 4, 8, 6, 12, 7


class Layer(NamedTuple):
    """Weights for H query heads over `kv_heads` of keys and values."""

    in_weight: torch.Tensor
    in_bias: torch.Tensor | None
    out_weight: torch.Tensor
    out_bias: torch.Tensor | None


def draw(*shape, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def make_layer(kv_heads=2, *, bias=True, dtype=torch.float32):
    rows = H * K + kv_heads * (K + KV)
    layer = Layer(
        draw(rows, E, seed=1, dtype=dtype) / E**0.5,
        draw(rows, seed=2, dtype=dtype),
        draw(F, H * KV, seed=3, dtype=dtype) / (H * KV) ** 0.5,
        draw(F, seed=4, dtype=dtype),
    )
    return layer if bias else layer._replace(in_bias=None, out_bias=None)


def fresh(kv_heads=2, *, dtype=torch.float32, streams=B):
    """Rings whose slots hold NaN until they are written, and positions."""
    return (
        torch.full((streams, R, kv_heads, K), torch.nan, dtype=dtype),
        torch.full((streams, R, kv_heads, KV), torch.nan, dtype=dtype),
        torch.zeros(streams, dtype=torch.int64),
    )


def by_parts(x, layer, key_ring, value_ring, *others, **options):
    """The same with torch's products around `attention_step_`."""
    kv_heads = key_ring.shape[2]
    parts = linear(x, layer.in_weight, layer.in_bias).split(
        [H * K, kv_heads * K, kv_heads * KV], dim=1
    )
    rows = (
        part.unflatten(1, (1, heads, -1))
        for part, heads in zip(parts, (H, kv_heads, kv_heads), strict=True)
    )
    out = xops.attention_step_(*rows, key_ring, value_ring, *others, **options)
    return linear(out.flatten(1), layer.out_weight, layer.out_bias)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 5e-2), (torch.float16, 5e-3)],
)
@pytest.mark.parametrize(("kv_heads", "bias"), [(4, True), (2, False)])
def test_steps_are_their_parts(kv_heads, bias, dtype, tolerance):
    layer = make_layer(kv_heads, bias=bias, dtype=dtype)
    ours, parts = fresh(kv_heads, dtype=dtype), fresh(kv_heads, dtype=dtype)
    for step in range(2 * R + 2):
        x = draw(B, E, seed=10 + step, dtype=dtype)
        out = xops.multihead_attention_step_(x, *layer, *ours, 4)
        expected = by_parts(x, layer, *parts, 4)
        assert out.shape == (B, F)
        for got, wanted in zip((out, *ours), (expected, *parts), strict=True):
            torch.testing.assert_close(
                got, wanted, atol=tolerance, rtol=tolerance, equal_nan=True, msg=f"step {step}"
            )


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_padding_activity_bias_scale_and_waiting_queries(delay):
    layer, ours, parts = make_layer(), fresh(), fresh()
    rings = [torch.zeros(B, R, dtype=torch.bool) for _ in range(2)]
    waiting = [torch.zeros(B, delay, H, K) if delay > 0 else None for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        x = draw(B, E, seed=step)
        options = {
            "padding": torch.rand(B, generator=generator) < 0.4,
            "active": torch.rand(B, generator=generator) < 0.7,
            "attn_bias": torch.randn(B, H, 1, 3, generator=generator),
            "scale": 0.4,
        }
        out = xops.multihead_attention_step_(
            *(x, *layer, *ours, 3), padding_ring=rings[0], query_ring=waiting[0], **options
        )
        expected = by_parts(
            *(x, layer, *parts, 3), padding_ring=rings[1], query_ring=waiting[1], **options
        )
        torch.testing.assert_close(out, expected, atol=2e-6, rtol=2e-6)
        assert torch.equal(ours[2], parts[2])
        assert torch.equal(*rings)
        if delay > 0:
            torch.testing.assert_close(*waiting, atol=2e-6, rtol=2e-6)
        resting = ~options["active"]
        assert torch.equal(out[resting], layer.out_bias.expand(int(resting.sum()), -1))


def test_extra_rows_are_seen_by_queries_that_waited():
    layer, ours, parts = make_layer(), fresh(), fresh()
    waiting = [torch.zeros(B, 2, H, K) for _ in range(2)]
    extra = {"extra_key": draw(3, 2, K, seed=5), "extra_value": draw(3, 2, KV, seed=6)}
    for step in range(8):
        x = draw(B, E, seed=step)
        out = xops.multihead_attention_step_(x, *layer, *ours, 3, query_ring=waiting[0], **extra)
        expected = by_parts(x, layer, *parts, 3, query_ring=waiting[1], **extra)
        torch.testing.assert_close(out, expected, atol=2e-6, rtol=2e-6)


def test_a_stream_gives_its_bits_in_any_batch():
    layer, together, alone = make_layer(), fresh(), fresh(streams=1)
    waiting = torch.zeros(B, 2, H, K)
    its_own = waiting[1:2].clone()
    for step in range(8):
        x = draw(B, E, seed=step)
        out = xops.multihead_attention_step_(x, *layer, *together, query_ring=waiting)
        same = xops.multihead_attention_step_(x[1:2], *layer, *alone, query_ring=its_own)
        assert torch.equal(out[1:2], same)
        assert torch.equal(waiting[1:2], its_own)


def step_twice(x, weights, rings, query_ring):
    return xops.multihead_attention_step_(x, *weights, *rings, query_ring=query_ring) * 2


def test_one_compiled_graph_across_the_fill_boundary():
    torch._dynamo.reset()
    compiled = torch.compile(step_twice, fullgraph=True, backend="aot_eager")
    layer, states = make_layer(), [(fresh(), torch.zeros(B, 2, H, K)) for _ in range(2)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(2 * R):
            x = draw(B, E, seed=step)
            assert torch.equal(compiled(x, layer, *states[0]), step_twice(x, layer, *states[1]))
            assert states[0][0][2].tolist() == [step + 1] * B
            assert torch.equal(states[0][1], states[1][1])


def test_opcheck():
    state = (x.nan_to_num(0) for x in fresh())
    operator = torch.ops.attn_ops._multihead_attention_step_.default
    options = {
        "padding_ring": torch.zeros(B, R, dtype=torch.bool),
        "scale": 0.3,
        "query_ring": torch.randn(B, 2, H, K),
    }
    torch.library.opcheck(operator, (draw(B, E, seed=0), *make_layer(), *state, 3), options)


def test_refusals_name_the_argument_and_write_nothing():
    x, layer, state = draw(B, E, seed=0), make_layer(), fresh()
    cases = {
        "x \\[B, E\\]": (x[0], layer, state),
        "x's last stride": (draw(E, B, seed=0).T, layer, state),
        "in_weight to have 2 dimensions, the last of 11": (x[:, :11], layer, state),
        "in_weight to have Hq \\* 8 \\+ 28 rows": (
            x,
            layer._replace(in_weight=layer.in_weight[:-1], in_bias=None),
            state,
        ),
        "in_bias to be None or": (x, layer._replace(in_bias=layer.in_bias[:-1]), state),
        "out_weight to have 2 dimensions, the last of 24": (
            x,
            layer._replace(out_weight=layer.out_weight[:, 1:]),
            state,
        ),
        "out_bias to be None or": (x, layer._replace(out_bias=layer.out_bias[:-1]), state),
        "in_weight's dtype": (x.half(), layer, state),
        "in_bias's dtype": (x, layer._replace(in_bias=layer.in_bias.half()), state),
        "out_weight's dtype": (x, layer._replace(out_weight=layer.out_weight.half()), state),
        "out_bias's dtype": (x, layer._replace(out_bias=layer.out_bias.half()), state),
        "out_weight's last stride": (
            x,
            layer._replace(out_weight=layer.out_weight.mT.contiguous().mT),
            state,
        ),
        "in_bias's last stride": (
            x,
            layer._replace(in_bias=torch.zeros(()).expand(layer.in_bias.shape)),
            state,
        ),
        "key_ring's dtype": (x, layer, (state[0].half(), *state[1:])),
        "key_ring \\[B, R, Hkv, K\\]": (x, layer, (state[0][0], *state[1:])),
        "key_ring \\[B, R, Hkv, K\\] and": (x, layer, (state[0][0, 0, 0], *state[1:])),
        "position in": (x, layer, (*state[:2], state[2] - 1)),
    }
    for match, (given, weights, rings) in cases.items():
        with pytest.raises(ValueError, match=f"multihead_attention_step_: expected .*{match}"):
            xops.multihead_attention_step_(given, *weights, *rings)
    waiting = draw(B, 2, H, K + 1, seed=0)
    with pytest.raises(ValueError, match="multihead_attention_step_: expected query_ring's extent"):
        xops.multihead_attention_step_(x, *layer, *state, query_ring=waiting)
    assert all(ring.isnan().all() for ring in state[:2])
    assert state[2].tolist() == [0] * B


def test_gradients_and_other_devices_are_refused():
    x, layer, state = draw(B, E, seed=0), make_layer(), fresh()
    weights = layer._replace(in_weight=layer.in_weight.clone().requires_grad_())
    with pytest.raises(NotImplementedError, match="expected a call without gradients"):
        xops.multihead_attention_step_(x, *weights, *state)
    with torch.no_grad():
        xops.multihead_attention_step_(x, *weights, *state)
    with pytest.raises(NotImplementedError, match="expected CPU or CUDA tensors"):
        xops.multihead_attention_step_(*(y.to("meta") for y in (x, *layer, *state)))
