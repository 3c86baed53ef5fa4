"""`attention_step_` against attention over all that a stream has seen, and its refusals."""

import math

import pytest
import torch

import attn_ops as xops

B, R, H, K, KV = 3, 5, 4, 8, 6


def fresh(window_slots=R, *, kv_heads=2, dtype=torch.float32):
    """Rings whose slots hold NaN until they are written, and positions."""
    return (
        torch.full((B, window_slots, kv_heads, K), torch.nan, dtype=dtype),
        torch.full((B, window_slots, kv_heads, KV), torch.nan, dtype=dtype),
        torch.zeros(B, dtype=torch.int64),
    )


def rows(seed, *, kv_heads=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def draw(heads, width):
        return torch.randn(B, 1, heads, width, generator=generator, dtype=torch.float64).to(dtype)

    return draw(H, K), draw(kv_heads, K), draw(kv_heads, KV)


def reference(query, keys, values, keep, bias=None):
    """Softmax of the scores by the definition, in float64: [1, Hq, Kv]; 0 without a key."""
    groups = query.shape[1] // keys.shape[1]
    query, keys, values = (x.double() for x in (query, keys, values))
    scores = torch.einsum("thk,shk->hts", query, keys.repeat_interleave(groups, 1))
    scores = scores / math.sqrt(K)
    if bias is not None:
        scores = scores + bias[:, None].double()
    weights = torch.softmax(scores.masked_fill(~keep, -math.inf), -1).nan_to_num()
    return torch.einsum("hts,shv->thv", weights, values.repeat_interleave(groups, 1))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)],
)
@pytest.mark.parametrize(("slots", "window"), [(5, 5), (5, 3), (1, 1), (2, 1)])
def test_steps_are_attention_over_the_window(dtype, tolerance, slots, window):
    key_ring, value_ring, position = fresh(slots, dtype=dtype)
    seen = []
    for step in range(2 * slots + 3):
        seen.append(rows(step, dtype=dtype))
        out = xops.attention_step_(*seen[-1], key_ring, value_ring, position, window)
        assert position.tolist() == [step + 1] * B
        last = seen[-window:]
        for b in range(B):
            keys, values = (torch.cat([row[i][b] for row in last]) for i in (1, 2))
            keep = torch.ones(len(last), dtype=torch.bool)
            expected = reference(seen[-1][0][b], keys, values, keep)
            torch.testing.assert_close(
                out[b].double(), expected, atol=tolerance, rtol=tolerance, msg=f"step {step}"
            )


def test_padding_activity_and_bias():
    key_ring, value_ring, position = fresh()
    padding_ring = torch.zeros(B, R, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    history = [[] for _ in range(B)]
    for step in range(14):
        query, key, value = rows(step)
        active = torch.rand(B, generator=generator) < 0.7
        padding = torch.rand(B, generator=generator) < 0.4
        bias = torch.randn(B, H, 1, 4, generator=generator)
        before = (key_ring.clone(), value_ring.clone(), padding_ring.clone(), position.clone())
        out = xops.attention_step_(
            query,
            key,
            value,
            key_ring,
            value_ring,
            position,
            4,
            padding=padding,
            padding_ring=padding_ring,
            active=active,
            attn_bias=bias,
        )
        for b in range(B):
            if not active[b]:
                assert torch.equal(out[b], torch.zeros(1, H, KV))
                after = (key_ring, value_ring, padding_ring, position)
                assert all(
                    torch.equal(x[b].nan_to_num(7), y[b].nan_to_num(7))
                    for x, y in zip(before, after, strict=True)
                )
                continue
            history[b].append((key[b], value[b], ~padding[b]))
            keys, values, keep = zip(*history[b][-4:], strict=True)
            row = bias[b, :, 0, 4 - len(keys) :]
            expected = reference(
                query[b], torch.cat(keys), torch.cat(values), torch.stack(keep), row
            )
            torch.testing.assert_close(out[b].double(), expected, atol=1e-6, rtol=1e-6)
    assert position.tolist() == [len(steps) for steps in history]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)]
)
def test_extra_rows_are_seen_besides(dtype, tolerance):
    key_ring, value_ring, position = fresh(dtype=dtype)
    padding_ring = torch.zeros(B, R, dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    extra = [torch.randn(2, 2, width, generator=generator).to(dtype) for width in (K, KV)]
    extra[0][1], extra[1][1] = 0, 0
    seen = []
    for step in range(8):
        seen.append((*rows(step, dtype=dtype), torch.arange(B) == step % (B + 1)))
        query, key, value, padding = seen[-1]
        out = xops.attention_step_(
            *(query, key, value, key_ring, value_ring, position, 3),
            padding=padding,
            padding_ring=padding_ring,
            extra_key=extra[0],
            extra_value=extra[1],
        )
        for b in range(B):
            kept = [row for row in seen[-3:] if not row[3][b]]
            keys, values = (
                torch.cat([more, *(row[i][b] for row in kept)]) for i, more in enumerate(extra, 1)
            )
            keep = torch.ones(len(keys), dtype=torch.bool)
            expected = reference(query[b], keys, values, keep)
            torch.testing.assert_close(out[b].double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("delay", [1, 3, 7])
@pytest.mark.parametrize("has_extra", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)]
)
def test_queries_wait_for_the_keys_after_them(delay, has_extra, dtype, tolerance):
    state = fresh(dtype=dtype)
    generator = torch.Generator().manual_seed(2)
    query_ring = torch.randn(B, delay, H, K, generator=generator).to(dtype)
    extra_key, extra_value = (
        torch.randn(2 * has_extra, 2, width, generator=generator).to(dtype) for width in (K, KV)
    )
    options = {"extra_key": extra_key, "extra_value": extra_value} if has_extra else {}
    queries = [list(query_ring[b].clone()) for b in range(B)]  # those before the first step, too
    history = [[] for _ in range(B)]
    for step in range(2 * delay + 9):
        query, key, value = rows(step, dtype=dtype)
        active = torch.rand(B, generator=generator) < 0.7
        out = xops.attention_step_(
            *(query, key, value, *state, 4), active=active, query_ring=query_ring, **options
        )
        for b in range(B):
            attending = queries[b][len(history[b])]
            if active[b]:
                queries[b].append(query[b, 0])
                history[b].append((key[b], value[b]))
            seen = [(extra_key, extra_value), *(history[b][-4:] if active[b] else [])]
            keys, values = (torch.cat(parts) for parts in zip(*seen, strict=True))
            keep = torch.ones(len(keys), dtype=torch.bool)
            expected = reference(attending[None], keys, values, keep)
            torch.testing.assert_close(out[b].double(), expected, atol=tolerance, rtol=tolerance)
            for slot, waiting in enumerate(queries[b][-delay:], len(history[b])):
                assert torch.equal(query_ring[b, slot % delay], waiting)


def test_the_window_is_the_rings_by_default_and_scale_counts():
    (key_ring, value_ring, position), others = fresh(), fresh()
    for step in range(7):
        query, key, value = rows(step)
        out = xops.attention_step_(query, key, value, key_ring, value_ring, position, scale=0.5)
        scaled = query * (0.5 * math.sqrt(K))
        expected = xops.attention_step_(scaled, key, value, *others, R)
        torch.testing.assert_close(out, expected)


def test_a_stream_gives_its_bits_in_any_batch():
    together, alone = fresh(), [x[1:2].clone() for x in fresh()]
    together[2][0] = 9  # another stream is far ahead
    together[0][0] = together[1][0] = 0.0
    for step in range(8):
        inputs = rows(step)
        out = xops.attention_step_(*inputs, *together)
        assert torch.equal(out[1:2], xops.attention_step_(*(x[1:2] for x in inputs), *alone))


def test_strided_rows_and_rings():
    """Rows cut from one projection; rings whose heads lie apart."""
    packed = torch.randn(B, 1, H, 3 * K)
    query, key, value = packed.split(K, dim=-1)
    rings = [torch.zeros(B, H, R, K).transpose(1, 2) for _ in range(2)]
    plain = [torch.zeros(B, R, H, K) for _ in range(2)]
    positions = torch.zeros(2, B, dtype=torch.int64)
    out = xops.attention_step_(query, key, value, *rings, positions[0])
    expected = xops.attention_step_(
        *(x.contiguous() for x in (query, key, value)), *plain, positions[1]
    )
    assert torch.equal(out, expected)
    assert torch.equal(rings[0], plain[0])
    torch.testing.assert_close(out, value)  # one key: its value


def step_twice(query, key, value, key_ring, value_ring, position, padding_ring, query_ring):
    out = xops.attention_step_(
        *(query, key, value, key_ring, value_ring, position),
        padding_ring=padding_ring,
        query_ring=query_ring,
    )
    return out * 2


@pytest.mark.parametrize("delay", [0, 2])
def test_one_compiled_graph_across_the_fill_boundary(delay):
    torch._dynamo.reset()
    compiled = torch.compile(step_twice, fullgraph=True, backend="aot_eager")
    states = [
        [
            *fresh(),
            torch.zeros(B, R, dtype=torch.bool),
            torch.zeros(B, delay, H, K) if delay > 0 else None,
        ]
        for _ in range(2)
    ]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(2 * R):
            inputs = rows(step)
            out = compiled(*inputs, *states[0])
            assert torch.equal(out, step_twice(*inputs, *states[1]))
            assert states[0][2].tolist() == [step + 1] * B
            assert delay == 0 or torch.equal(states[0][4], states[1][4])


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_opcheck(name):
    key_ring, value_ring, position = (x.nan_to_num(0) for x in fresh())
    options = {
        "padding": torch.tensor([True, False, False]),
        "padding_ring": torch.zeros(B, R, dtype=torch.bool),
        "active": torch.tensor([True, True, False]),
        "bias": torch.randn(1, H, 1, 3),
        "scale": 0.3,
        "extra_key": torch.randn(2, 2, K),
        "extra_value": torch.randn(2, 2, KV),
        "query_ring": torch.randn(B, 2, H, K),
    }
    arguments = (*rows(0), key_ring, value_ring, position, 3)
    operator = torch.ops.attn_ops._attention_step_.default
    torch.library.opcheck(operator, arguments, options if name == "everything" else {})


def test_refusals_name_the_argument_and_write_nothing():
    (key_ring, value_ring, position), (query, key, value) = fresh(), rows(0)
    kept = key_ring.clone()
    cases = [
        ("window in", (query, key, value, key_ring, value_ring, position, R + 1), {}),
        ("key_ring's extent", (query, key, value, key_ring[..., :3], value_ring, position), {}),
        ("key_ring", (query, key, value, key_ring[0, 0, 0], value_ring, position), {}),
        ("query of one step", (query.expand(-1, 2, -1, -1), *rows(0)[1:], *fresh()), {}),
        ("position's dtype", (query, key, value, key_ring, value_ring, position.int()), {}),
        ("position in", (query, key, value, key_ring, value_ring, position - 1), {}),
        ("value's dtype", (query, key, value.half(), key_ring, value_ring, position), {}),
        (
            "padding_ring",
            (query, key, value, key_ring, value_ring, position),
            {"padding": torch.zeros(B, dtype=torch.bool)},
        ),
        (
            "attn_bias's extent L",
            (query, key, value, key_ring, value_ring, position),
            {"attn_bias": torch.zeros(1, 1, 1, R + 1)},
        ),
        ("4-D query", (query[0], key, value, key_ring, value_ring, position), {}),
        (
            r"query_ring's extent D \(axis 1\) to be at least 1",
            (query, key, value, key_ring, value_ring, position),
            {"query_ring": torch.zeros(B, 0, H, K)},
        ),
        (
            r"query_ring's extent Hq \(axis 2\)",
            (query, key, value, key_ring, value_ring, position),
            {"query_ring": torch.zeros(B, 2, 2, K)},
        ),
        (
            "both extra_key and extra_value",
            (query, key, value, key_ring, value_ring, position),
            {"extra_key": torch.zeros(1, 2, K)},
        ),
        (
            r"extra_value \[2, 2, 6\]",
            (query, key, value, key_ring, value_ring, position),
            {"extra_key": torch.zeros(2, 2, K), "extra_value": torch.zeros(1, 2, KV)},
        ),
        (
            "extra_key's dtype",
            (query, key, value, key_ring, value_ring, position),
            {"extra_key": torch.zeros(2, 2, K).half(), "extra_value": torch.zeros(2, 2, KV)},
        ),
        (
            "extra_value's last stride to be 1, got 2",
            (query, key, value, key_ring, value_ring, position),
            {"extra_key": torch.zeros(2, 2, K), "extra_value": torch.zeros(2, KV, 2).mT},
        ),
        (
            "a finite scale, got inf",
            (query, key, value, key_ring, value_ring, position),
            {"scale": torch.inf},
        ),
    ]
    for match, arguments, options in cases:
        with pytest.raises(ValueError, match=f"attention_step_: expected .*{match}"):
            xops.attention_step_(*arguments, **options)
        assert torch.equal(key_ring.nan_to_num(7), kept.nan_to_num(7))


def test_gradients_and_other_devices_are_refused():
    state, (query, key, value) = fresh(), rows(0)
    with pytest.raises(NotImplementedError, match="expected a call without gradients"):
        xops.attention_step_(query.requires_grad_(), key, value, *state)
    waiting = torch.zeros(B, 1, H, K, requires_grad=True)
    with pytest.raises(NotImplementedError, match="expected a call without gradients"):
        xops.attention_step_(query.detach(), key, value, *state, query_ring=waiting)
    with torch.no_grad():
        xops.attention_step_(query, key, value, *state)
    with pytest.raises(NotImplementedError, match="expected CPU or CUDA tensors"):
        xops.attention_step_(*(x.to("meta") for x in (query.detach(), key, value, *state)))
