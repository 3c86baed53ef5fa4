"""Relative attention against its definition pair by pair, and everything its peer crashes on."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from allocated_elements import AllocatedElements
from attn_continual import (
    GroupedLinear,
    RelativeAttention,
    _disentangled_attention,
    _disentangled_logits,
    position_attention,
    relative_attention,
)
from reference.continual import relative_attention as reference
from relative_attention_cases import (
    CASES,
    COUNT,
    HEADS,
    SIZE,
    expected_of,
    gradients,
    make_case,
    results_of,
)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_results_and_gradients_in_float64(case):
    layer, inputs, settings = make_case(**case)
    found, expected = results_of(layer, inputs), expected_of(layer, inputs, settings)
    assert len(found[0]) == len(expected[0])
    assert_close(found[0], expected[0], rtol=0, atol=1e-12)
    assert_close(found[1], expected[1], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.3), (torch.float16, 0.04)]
)
def test_results_in_other_dtypes(dtype, tolerance):
    layer, inputs, settings = make_case(**CASES["everything"], dtype=dtype)
    (pooled, logits), grads = results_of(layer, inputs)
    (expected_pooled, expected_logits), expected_grads = expected_of(layer, inputs, settings)
    assert pooled.dtype == logits.dtype == dtype
    assert_close(pooled.double(), expected_pooled, rtol=0.05, atol=tolerance)
    assert_close(logits.double(), expected_logits, rtol=0.05, atol=tolerance)
    if dtype == torch.float32:
        assert_close([x.double() for x in grads], list(expected_grads), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("case", ["everything", "distances and all else", "mask of keys"])
def test_without_logits_there_are_the_same_outputs_and_gradients(case):
    layer, inputs, settings = make_case(**CASES[case])
    found, grads = results_of(partial(layer, need_logits=False), inputs, layer)
    (expected, _), _ = expected_of(layer, inputs, settings)
    assert_close(found, [expected], rtol=0, atol=1e-12)
    wanted, _ = layer(**inputs)
    assert_close(grads, gradients([wanted], [*inputs.values(), *layer.parameters()]))


def test_outputs_by_distance_come_from_attention_by_position(monkeypatch):
    def lowered(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(relative_attention, "attend_by_position", lowered)
    for case in ("distances", "distances transposed"):
        layer, inputs, _ = make_case(**CASES[case])
        with pytest.raises(NotImplementedError):
            layer(**inputs)
        x = inputs["relative_positions"].clone()
        x[1, 2, 3] += 1
        layer(**(inputs | {"relative_positions": x}))


@pytest.mark.parametrize("used", [0, 1])
def test_gradients_of_one_of_the_results(used):
    layer, inputs, settings = make_case(**CASES["everything"])
    parameters = list(layer.parameters())
    own = {name: x.detach().requires_grad_() for name, x in layer.named_parameters()}
    expected = reference.attend(own, **inputs, **settings)[used]
    found = torch.autograd.grad(layer(**inputs)[used].sum(), parameters, allow_unused=True)
    wanted = torch.autograd.grad(expected.sum(), list(own.values()), allow_unused=True)
    for name, x, y in zip(own, found, wanted, strict=True):
        unused = torch.zeros(())
        assert_close(
            unused.expand_as(own[name]).double() if x is None else x,
            unused.expand_as(own[name]).double() if y is None else y,
            rtol=0,
            atol=1e-11,
        )


@pytest.mark.parametrize("logits", [1, 25 * 2, 25 * 6])
def test_heads_and_samples_taken_apart_give_the_same(logits, monkeypatch):
    layer, inputs, _ = make_case(**{**CASES["everything"], "keys": 5})
    together = results_of(layer, inputs)
    monkeypatch.setattr(_disentangled_logits, "_LOGITS_PER_THREAD", logits)
    assert_close(results_of(layer, inputs), together, rtol=0, atol=1e-12)


def test_keys_are_the_queries_by_default():
    layer, inputs, _ = make_case(keys=5)
    queries = inputs["content_queries"]
    logits = layer(queries, relative_positions=inputs["relative_positions"])
    expected = layer(queries, queries, relative_positions=inputs["relative_positions"])
    assert_close(logits, expected, rtol=0, atol=0)


def test_additional_heads_come_first():
    layer, inputs, _ = make_case(extra_heads=2)
    pooled, logits = layer(**inputs)
    assert logits.shape[-1] == HEADS + 2
    base = torch.zeros_like(logits)
    base[..., :2] = torch.randn_like(base[..., :2])
    other, _ = layer(**inputs, base_attn=base)
    assert_close(other, pooled, rtol=0, atol=1e-12)
    base[..., 2] = torch.randn_like(base[..., 2])
    assert not torch.allclose(layer(**inputs, base_attn=base)[0], pooled)


def test_tied_projections_appear_twice_in_the_state():
    layer, _, _ = make_case(same_key_query_proj=True)
    state = layer.state_dict()
    for kind in ("content", "position"):
        for name in ("weight", "bias"):
            tied = (state[f"{kind}_{of}_proj.{name}"] for of in ("key", "query"))
            assert_close(*tied, rtol=0, atol=0)
    assert layer.content_query_proj is layer.content_key_proj
    assert layer.position_query_proj is layer.position_key_proj
    assert state["bias"].shape == (HEADS,)


def test_state_has_the_layout_that_weights_convert_from():
    layer, _, _ = make_case(coordinates=2, extra_heads=1)
    fresh = RelativeAttention(
        SIZE, HEADS, position_embedding=torch.randn(COUNT, 8), n_coordinates=2, n_additional_heads=1
    )
    shapes = {name: tuple(x.shape) for name, x in fresh.state_dict().items()}
    assert shapes == {
        "bias": (3,),
        "position_embedding": (COUNT, 8),
        "content_key_proj.weight": (12, SIZE),
        "content_key_proj.bias": (12,),
        "content_query_proj.weight": (12, SIZE),
        "content_query_proj.bias": (12,),
        "content_value_proj.weight": (SIZE, SIZE),
        "content_value_proj.bias": (SIZE,),
        "position_key_proj.weight": (2, 4, 6),
        "position_key_proj.bias": (2, 6),
        "position_query_proj.weight": (2, 4, 6),
        "position_query_proj.bias": (2, 6),
    }
    assert "position_embedding" not in dict(fresh.named_parameters())
    fresh.load_state_dict(layer.state_dict())
    assert (fresh.position_embedding == layer.position_embedding).all()


def test_grouped_projection_begins_with_no_bias():
    layer = GroupedLinear(6, 4, 2)
    assert (layer.bias == 0).all()
    assert layer.weight.abs().max() <= 3**-0.5
    assert layer(torch.randn(5, 6)).shape == (5, 4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_positions_of_any_integers_however_far(dtype):
    layer, inputs, _ = make_case()
    ends = torch.iinfo(dtype)
    furthest = torch.where(inputs["relative_positions"] < 0, ends.min, ends.max)
    clipped = furthest.clamp(-COUNT, COUNT).long()
    got = layer(**(inputs | {"relative_positions": furthest.to(dtype)}))
    assert_close(got, layer(**(inputs | {"relative_positions": clipped})), rtol=0, atol=0)


@pytest.mark.parametrize("empty", ["queries", "keys"])
def test_empty_sequences(empty):
    layer, inputs, _ = make_case(**{empty: 0}, mask=2)
    (pooled, logits), grads = results_of(layer, inputs)
    rows, columns = (0, 5) if empty == "queries" else (5, 0)
    assert pooled.shape == (3, rows, SIZE)
    assert (pooled == 0).all()
    assert logits.shape == (3, rows, columns, HEADS)
    assert all(grad.isfinite().all() for grad in grads)


def test_queries_without_keys_give_zeros_and_no_gradient():
    layer, inputs, _ = make_case()
    mask = torch.ones(3, 5, 5, dtype=torch.bool)
    mask[1, 2] = False
    pooled, _ = layer(**inputs, mask=mask)
    assert (pooled[1, 2] == 0).all()
    assert (pooled[1, 3] != 0).any()
    (grad,) = torch.autograd.grad(pooled[1, 2].sum(), inputs["content_queries"])
    assert (grad == 0).all()


def test_masked_keys_count_nothing_whatever_they_hold():
    layer, inputs, _ = make_case()
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[:, 3:] = False
    expected, _ = layer(**inputs, mask=mask)
    with torch.no_grad():
        inputs["content_keys"][:, 3:] *= -1e6  # logits far below any filling number
        inputs["content_values"][:, 3:] = torch.nan
    pooled, _ = layer(**inputs, mask=mask)
    assert_close(pooled, expected, rtol=0, atol=1e-12)


def test_dropout_of_contents_embedding_and_weights():
    layer, inputs, _ = make_case(dropout_p=0.4)
    torch.manual_seed(1)
    first, second = layer(**inputs), layer(**inputs)
    assert not torch.allclose(first[1], second[1])
    torch.manual_seed(1)
    assert_close(layer(**inputs), first, rtol=0, atol=0)
    layer.eval()
    assert_close(layer(**inputs), layer(**inputs), rtol=0, atol=0)


def test_weights_are_dropped_and_differentiated():
    layer, inputs, _ = make_case(dropout_p=0.4)
    layer._dropped = lambda x: x  # of weights alone
    queries = inputs["content_queries"].detach()[:1, :3].requires_grad_()
    positions = inputs["relative_positions"][:1, :3, :3]

    def attend(x):
        torch.manual_seed(5)
        return layer(x, None, x, relative_positions=positions)[0]

    assert torch.autograd.gradcheck(attend, (queries,), atol=1e-6)
    kept = layer.eval()(queries, None, queries, relative_positions=positions)[0]
    assert not torch.allclose(attend_in_training(layer, attend, queries), kept)


def attend_in_training(layer, attend, queries):
    layer.train()
    return attend(queries)


@pytest.mark.parametrize("positions", ["own", "distances"])
def test_nothing_has_pairs_times_anything(positions):
    length = 128
    layer = RelativeAttention(SIZE, HEADS, position_embedding=torch.randn(COUNT, 4))
    x = torch.randn(1, length, SIZE, requires_grad=True)
    relative = torch.arange(length) - torch.arange(length)[:, None]
    relative = relative if positions == "distances" else relative.square()
    inputs = {"content_values": x, "relative_positions": relative[None, :, :, None]}
    with AllocatedElements() as allocated:
        sum(result.sum() for result in layer(x, **inputs)).backward()
    assert allocated.largest == HEADS * length**2, allocated.operation
    with AllocatedElements() as allocated:
        layer(x, **inputs, need_logits=False).sum().backward()
    assert allocated.largest < length**2, allocated.operation


def test_operator_has_no_pairs_of_all_queries(monkeypatch):
    length = 128
    monkeypatch.setattr(_disentangled_logits, "_LOGITS_PER_THREAD", 8 * length)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    query, key, value = torch.randn(3, 1, length, HEADS, 4).unbind()
    table, positions = torch.randn(1, HEADS, COUNT, 4), torch.randint(-2, 3, (1, length, length, 1))
    call = (query, key, value, table, table, None, None, positions, *[None] * 3, 0.3, 0.0, True)
    forward, backward = (
        getattr(_disentangled_attention, name)._init_fn for name in ("_forward", "_differentiate")
    )
    with AllocatedElements() as allocated:
        results = forward(*call, False, False)
        backward(None, results[1], *results, False, *call, False, False)
    assert allocated.largest <= 8 * length, allocated.operation


def test_compiled_in_one_graph_with_gradients():
    layer, inputs, _ = make_case(**CASES["everything"], dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results, expected = compiled(**inputs), layer(**inputs)
    assert_close(results, expected)
    found = [
        torch.autograd.grad(x[0].sum() + x[1].sum(), layer.bias)[0] for x in (results, expected)
    ]
    assert_close(*found)


def test_exported():
    layer, inputs, _ = make_case(**CASES["everything"], dtype=torch.float32)
    layer.eval()
    inputs = {name: x.detach() for name, x in inputs.items()}
    exported = torch.export.export(layer, (), inputs).module()
    assert_close(exported(**inputs), layer(**inputs))


def test_operator_keeps_what_torch_asks_of_operators():
    query, key, value = torch.randn(3, 2, 4, 2, 4).unbind()
    tables = [torch.randn(2, 2, 5, 2) for _ in range(2)]
    positions = torch.randint(-2, 3, (1, 4, 4, 2))
    inputs = [query, key, value, *tables, torch.randn(2), torch.randn(2, 2, 4, 4)]
    inputs = [x.requires_grad_() for x in inputs]
    keep = torch.rand(2, 1, 4, 4) < 0.7
    arguments = (*inputs, positions, None, keep, None, 0.3, 0.0, True, False, True)
    torch.library.opcheck(torch.ops.attn_continual.disentangled_attention, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": ("c2c", "c2q")}, "expected mode"),
        ({"mode": ()}, "expected mode"),
        ({"mode": ("c2c", "c2c")}, "expected mode"),
        ({"p2c_index": "other"}, "expected p2c_index"),
        ({"n_heads": 3}, "expected key_size to be a multiple of n_heads"),
        ({"n_heads": 3, "head_size": 4}, "expected size to be a multiple of n_heads"),
        ({"n_heads": 0}, "expected key_size to be a multiple of n_heads, got 8 and 0"),
        ({"n_coordinates": 3}, "expected head_size to be a multiple of n_coordinates"),
        ({"position_embedding": torch.randn(6, 5), "n_coordinates": 2}, "features to be a multi"),
        ({"position_embedding": torch.randn(6)}, r"expected position_embedding \[positions"),
        ({"same_key_query_proj": True, "query_size": 7}, "expected query_size equal to key_size"),
    ],
)
def test_construction_names_what_is_wrong(change, message):
    arguments = {"n_heads": HEADS, "position_embedding": torch.randn(6, 4)} | change
    with pytest.raises(ValueError, match=message):
        RelativeAttention(SIZE, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relative_positions": torch.zeros(3, 5, 4, 1).long()}, "expected relative_positions"),
        ({"relative_positions": torch.zeros(2, 5, 5, 1).long()}, "expected relative_positions"),
        ({"relative_positions": torch.zeros(3, 5, 5, 1)}, "expected relative_positions of integ"),
        ({"no_position_mask": torch.zeros(3, 5, 5)}, "expected no_position_mask, bool"),
        ({"mask": torch.ones(3, 5)}, "expected mask, bool"),
        ({"mask": torch.ones(3, 4, dtype=torch.bool)}, "expected mask, bool"),
        ({"base_attn": torch.zeros(3, 5, 5, 3)}, "expected base_attn"),
        ({"base_attn": torch.ones(3, 5, 5, HEADS) > 0}, "expected base_attn, floating point"),
        ({"content_queries": torch.zeros(3, 5, 7)}, r"expected content_queries \[n, q, 8\]"),
        ({"content_keys": torch.zeros(3, 5, 7)}, r"content_keys \[n, k, 8\]"),
        ({"content_values": torch.zeros(3, 5, 7)}, r"expected content_values \[3, 5, 8\]"),
        ({"content_keys": torch.zeros(2, 5, SIZE)}, "expected content_queries"),
        ({"content_values": torch.zeros(3, 4, SIZE)}, "expected content_values"),
    ],
)
def test_calls_name_what_is_wrong(change, message):
    layer, inputs, _ = make_case(dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        layer(**(inputs | change))


@pytest.mark.parametrize(("sizes", "name"), [((5, 4), "in"), ((4, 5), "out")])
def test_groups_of_unequal_sizes_are_refused(sizes, name):
    with pytest.raises(ValueError, match=f"GroupedLinear: expected {name}_features to be a multi"):
        GroupedLinear(*sizes, n_groups=2)


def test_positions_without_an_embedding_and_without_a_content_term():
    layer = RelativeAttention(SIZE, HEADS)
    x = torch.randn(1, 3, SIZE)
    positions = torch.zeros(1, 3, 3, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="expected a position_embedding at construction"):
        layer(x, relative_positions=positions)
    assert layer(x).shape == (1, 3, 3, HEADS)
    layer = RelativeAttention(SIZE, HEADS, position_embedding=torch.randn(4, 4), mode=("c2p",))
    with pytest.raises(ValueError, match="expected relative_positions with mode"):
        layer(x)


def test_neither_outputs_nor_logits_are_nothing_to_ask_for():
    layer, inputs, _ = make_case(do_pooling=False)
    with pytest.raises(ValueError, match="got neither outputs nor logits"):
        layer(**inputs, need_logits=False)


def test_transposed_positions_need_a_square():
    layer, inputs, _ = make_case(keys=4, p2c_index="transposed")
    with pytest.raises(ValueError, match="expected as many keys as queries"):
        layer(**inputs)


def refuse_to_draw(who, p, device):
    raise ValueError(f"{who}: p={p} on {device}")


@pytest.mark.parametrize("positions", [None, "distances"])
def test_every_seed_may_be_refused(monkeypatch, positions):
    # As it is while a CUDA graph is captured.
    for module in (relative_attention, position_attention):
        monkeypatch.setattr(module, "draw_seed", refuse_to_draw)
    layer, inputs, _ = make_case(positions=positions)
    layer.dropout_p = 0.5
    with pytest.raises(ValueError, match=r"p=0\.5 on cpu"):
        layer.train()(**inputs, need_logits=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_additional_heads": -1}, "n_additional_heads, an int of 0 or more, got -1"),
        ({"dropout_p": 2.0}, "dropout_p, a probability"),
        ({"n_coordinates": 0}, "n_coordinates, an int of 1 or more, got 0"),
        ({"head_size": 0}, "head_size, an int of 1 or more, got 0"),
    ],
)
def test_numbers_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RelativeAttention(8, 2, **options)


def test_inputs_of_another_dtype_are_refused():
    layer, x = RelativeAttention(8, 2), torch.randn(2, 3, 8)
    with pytest.raises(ValueError, match=r"content_keys: expected torch\.float32"):
        layer(x, x.double())
