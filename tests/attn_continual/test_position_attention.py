"""Attention by relative positions against its definition pair by pair."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from allocated_elements import AllocatedElements
from attn_continual import attend_by_position
from reference.continual import positions

CASES = {
    "every distance": {"rows": 17},
    "one table for all heads": {"rows": 17, "table_heads": 1},
    "clipped": {"rows": 5},
    "clipped to one row": {"rows": 1},
    "more keys": {"keys": 13, "rows": 25, "offset": 4},
    "more queries": {"keys": 4, "rows": 9},
    "causal": {"rows": 9, "zero_row": 8, "window_right": 0},
    "causal continuation": {
        "keys": 13,
        "rows": 13,
        "zero_row": 12,
        "offset": 4,
        "window_right": 0,
    },
    "queries before the keys": {"rows": 7, "offset": -5, "window_right": 0},
    "queries after the keys": {"rows": 7, "offset": 6, "window_left": 4},
    "window": {"keys": 12, "rows": 8, "offset": 2, "window_left": 3, "window_right": 1},
    "single queries": {"queries": 1, "keys": 8, "rows": 15, "offset": 7},
    "padding": {"rows": 17, "padding": True},
    "bias": {"rows": 17, "bias": (1, 3, 9, 9)},
    "bias of keys, padding and window": {
        "rows": 6,
        "bias": (2, 1, 1, 9),
        "padding": True,
        "window_left": 2,
    },
    "positions of queries": {"rows": 17, "terms": ("query",)},
    "positions of both": {"rows": 17, "terms": ("key", "query")},
    "positions of both, clipped": {
        "keys": 13,
        "rows": 4,
        "terms": ("key", "query"),
        "offset": 3,
        "window_right": 2,
        "padding": True,
    },
    "positions of both, shared": {
        "rows": 3,
        "table_heads": 1,
        "zero_row": 0,
        "terms": ("key", "query"),
    },
    "own scale": {"rows": 17, "scale": 0.3},
    "several tiles": {
        "batch": 1,
        "heads": 2,
        "queries": 150,
        "keys": 290,
        "rows": 200,
        "terms": ("key", "query"),
        "offset": 140,
        "window_right": 20,
    },
    "grouped heads": {"rows": 17, "heads": 4, "key_heads": 2},
}


def make_call(
    *,
    batch=2,
    queries=9,
    keys=9,
    heads=3,
    key_heads=None,
    rows=17,
    table_heads=None,
    terms=("key",),
    bias=None,
    padding=False,
    dtype=torch.float64,
    **options,
):
    """Return the tensors that want gradients, and the other arguments."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.to(dtype).requires_grad_()

    key_heads = key_heads or heads
    tensors = {
        "query": draw(batch, queries, heads, 4),
        "key": draw(batch, keys, key_heads, 4),
        "value": draw(batch, keys, key_heads, 5),
    }
    if "key" in terms:
        tensors["key_table"] = draw(table_heads or heads, rows, 6)
        tensors["position_query"] = draw(batch, queries, heads, 6)
    if "query" in terms:
        tensors["query_table"] = draw(table_heads or heads, rows, 3)
        tensors["position_key"] = draw(batch, keys, heads, 3)
    if bias is not None:
        tensors["attn_bias"] = draw(*bias)
    if padding:
        options["keep"] = torch.arange(keys) < torch.tensor([keys - 3, keys])[:, None, None, None]
    return tensors, options


def expected_of(tensors, options):
    wide = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
    out = positions.attend(**wide, **options)
    return out, torch.autograd.grad(out, list(wide.values()), cotangent(out))


def cotangent(out):
    generator = torch.Generator().manual_seed(6)
    return torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)


def result_of(tensors, options):
    out = attend_by_position(**tensors, **options)
    return out, torch.autograd.grad(out, list(tensors.values()), cotangent(out))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_output_and_gradients_in_float64(case):
    tensors, options = make_call(**case)
    out, grads = result_of(tensors, options)
    expected, expected_grads = expected_of(tensors, options)
    assert_close(out, expected, rtol=0, atol=1e-12)
    assert_close(grads, expected_grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 5e-2), (torch.float16, 5e-3)]
)
def test_output_and_gradients_in_other_dtypes(dtype, tolerance):
    tensors, options = make_call(**CASES["positions of both, clipped"], dtype=dtype)
    out, grads = result_of(tensors, options)
    expected, expected_grads = expected_of(tensors, options)
    assert out.dtype == dtype
    assert {x.dtype for x in grads} == {dtype}
    assert_close(out.double(), expected, rtol=0, atol=tolerance)
    assert_close([x.double() for x in grads], list(expected_grads), rtol=0, atol=tolerance)


def test_content_stands_for_positions_by_default():
    tensors, options = make_call()
    tensors["query_table"] = torch.randn(3, 17, 4, dtype=torch.float64)
    tensors["key_table"] = torch.randn(3, 17, 4, dtype=torch.float64)
    del tensors["position_query"]
    for name in ("query_table", "key_table"):
        tensors[name].requires_grad_()
    out, grads = result_of(tensors, options)
    expected, expected_grads = expected_of(tensors, options)
    assert_close(out, expected, rtol=0, atol=1e-12)
    assert_close(grads, expected_grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize("of_content", [False, True])
def test_distances_that_share_rows(of_content):
    tensors, options = make_call(rows=4, terms=("key", "query"), keys=13, offset=4, window_right=5)
    if of_content:
        for name, table in (("position_query", "key_table"), ("position_key", "query_table")):
            del tensors[name]
            tensors[table] = torch.randn(3, 4, 4, dtype=torch.float64).requires_grad_()
    generator = torch.Generator().manual_seed(7)
    rows = torch.randint(4, (2, 11), generator=generator, dtype=torch.int32)
    names = ("key_table", "query_table")
    shared = {f"{name}_rows": each for name, each in zip(names, rows, strict=True)}
    out, grads = result_of(tensors, options | shared)
    wide = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    read = {name: wide[name][:, shared[f"{name}_rows"]] for name in names}
    expected = positions.attend(**(wide | read), **options)
    assert_close(out, expected, rtol=0, atol=1e-12)
    wanted = torch.autograd.grad(expected, list(wide.values()), cotangent(expected))
    assert_close(grads, wanted, rtol=0, atol=1e-12)


def test_gradients_over_several_blocks_of_keys_in_float32():
    tensors, options = make_call(
        batch=1,
        queries=140,
        keys=900,
        heads=2,
        rows=90,
        terms=("key", "query"),
        dtype=torch.float32,
    )
    generator = torch.Generator().manual_seed(8)
    for name, shape in (("query", (1, 140, 2, 64)), ("key", (1, 900, 2, 64))):
        tensors[name] = torch.randn(shape, generator=generator).requires_grad_()
    for name in ("key_table", "query_table"):
        tensors[name] = torch.randn(2, 90, 64, generator=generator).requires_grad_()
    del tensors["position_query"], tensors["position_key"]
    out, grads = result_of(tensors, options)
    expected, expected_grads = expected_of(tensors, options)
    assert_close(out.double(), expected, rtol=0, atol=2e-5)
    assert_close([x.double() for x in grads], list(expected_grads), rtol=1e-4, atol=2e-4)


def test_gradcheck():
    tensors, options = make_call(
        batch=1, queries=4, keys=5, heads=2, rows=4, terms=("key", "query")
    )
    names = list(tensors)

    def attend(*inputs):
        return attend_by_position(**dict(zip(names, inputs, strict=True)), **options)

    assert torch.autograd.gradcheck(attend, list(tensors.values()), atol=1e-6)


def test_gradients_under_dropout_match_differences():
    tensors, options = make_call(batch=1, queries=4, keys=5, heads=2, rows=4)

    def attend(query, table):
        torch.manual_seed(3)
        return attend_by_position(
            **{**tensors, "position_query": query, "key_table": table}, **options, p=0.4
        )

    inputs = (tensors["position_query"], tensors["key_table"])
    assert torch.autograd.gradcheck(attend, inputs, atol=1e-6)


def test_dropout_scales_what_it_keeps():
    tensors, options = make_call(batch=1, queries=64, keys=64, heads=1, rows=9)
    tensors["value"] = torch.eye(64, dtype=torch.float64)[None, :, None]
    weights = attend_by_position(**tensors, **options)[0, :, 0]
    dropped = attend_by_position(**tensors, **options, p=0.25)[0, :, 0]
    is_kept = dropped != 0
    assert_close(dropped[is_kept], weights[is_kept] / 0.75, rtol=1e-12, atol=0)
    assert abs(is_kept.double().mean() - 0.75) < 0.03  # 4 standard deviations


def test_keep_beside_a_bias():
    tensors, options = make_call(bias=(1, 3, 9, 1), padding=True)
    out, grads = result_of(tensors, options)
    expected, expected_grads = expected_of(tensors, options)
    assert_close(out, expected, rtol=0, atol=1e-12)
    assert_close(grads, expected_grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", [2, -1])
def test_rows_that_are_not_contiguous(step):
    tensors, options = make_call(terms=("key", "query"))
    expected = attend_by_position(**tensors, **options)
    for name in ("key_table", "position_query", "query_table", "position_key"):
        x = tensors[name].detach()
        wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
        wide[..., ::2] = x
        tensors[name] = wide[..., ::2] if step == 2 else x.mT.contiguous().mT
    assert_close(attend_by_position(**tensors, **options), expected, rtol=0, atol=0)


def test_queries_without_keys_give_zeros():
    tensors, options = make_call(terms=("key", "query"), bias=(2, 3, 9, 9))
    keep = torch.ones(2, 3, 9, 9, dtype=torch.bool)
    keep[0, :, 2] = False
    keep[1] = False
    out, grads = result_of(tensors, options | {"keep": keep})
    assert (out[0, 2] == 0).all()
    assert (out[1] == 0).all()
    assert out[0, 0].abs().max() > 0
    for grad in grads:
        assert grad.isfinite().all()
    by_name = dict(zip(tensors, grads, strict=True))
    for name in ("query", "position_query"):
        assert (by_name[name][0, 2] == 0).all(), name
        assert (by_name[name][1] == 0).all(), name


@pytest.mark.parametrize("empty", ["batch", "queries", "keys"])
def test_nothing_to_attend_to_or_from(empty):
    tensors, options = make_call(**{empty: 0}, terms=("key", "query"))
    out, grads = result_of(tensors, options)
    assert out.shape == (*tensors["query"].shape[:3], 5)
    assert (out == 0).all()
    assert all((grad == 0).all() for grad in grads)


def test_numbers_in_hidden_keys_reach_nothing():
    tensors, options = make_call(padding=True, window_right=0, terms=("key", "query"))
    expected = result_of(tensors, options)
    with torch.no_grad():
        for name in ("key", "value", "position_key"):
            tensors[name][0, 6:] = torch.nan
            tensors[name][1, 8:] = torch.nan
    out, grads = result_of(tensors, options)
    assert_close(out[:, :8], expected[0][:, :8], rtol=0, atol=0)
    assert out[0].isfinite().all()
    by_name = dict(zip(tensors, grads, strict=True))
    assert by_name["query"][:, :8].isfinite().all()
    assert by_name["position_query"][:, :8].isfinite().all()
    assert by_name["position_key"][0].isfinite().all()


@pytest.mark.parametrize("term", ["key", "query"])
def test_numbers_in_padding_reach_no_table(term):
    tensors, options = make_call(terms=(term,))
    options["keep"] = torch.arange(9)[None, None, None] < 7
    expected = result_of(tensors, options)
    with torch.no_grad():
        for name in {"key", "value", "position_key"} & tensors.keys():
            tensors[name][:, 7:] = torch.nan
    assert_close(result_of(tensors, options), expected, rtol=0, atol=0)


def test_the_same_bits_for_any_number_of_threads():
    tensors, options = make_call(queries=200, keys=600, rows=31, terms=("key", "query"))
    first = result_of(tensors, options)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads % 2 + 1)
        second = result_of(tensors, options)
    finally:
        torch.set_num_threads(threads)
    assert_close(first, second, rtol=0, atol=0)


def test_nothing_has_queries_times_keys():
    tensors, options = make_call(batch=1, queries=512, keys=512, heads=1, rows=1023)
    with AllocatedElements() as allocated:
        result_of(tensors, options)
    assert allocated.largest == 1023 * 6, allocated.operation  # the gradient of the table


def test_autocast_computes_in_its_dtype():
    tensors, options = make_call(dtype=torch.float32)
    tensors["key"] = tensors["key"].detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out, grads = result_of(tensors, options)
    assert out.dtype == torch.bfloat16
    expected, expected_grads = expected_of(tensors, options)
    assert_close(out.double(), expected, rtol=0, atol=5e-2)
    assert [x.dtype for x in grads] == [x.dtype for x in tensors.values()]
    assert_close([x.double() for x in grads], list(expected_grads), rtol=0, atol=5e-2)


class Attend(torch.nn.Module):
    """A user's layer, of one table."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(2, 9, 4))

    def forward(self, query, key):
        offset = key.shape[1] - query.shape[1]
        return attend_by_position(query, key, key, self.table, offset=offset, window_right=0)


def test_compiled_in_one_graph_with_gradients():
    torch.manual_seed(1)
    layer = Attend()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for num_keys in (6, 11):
        query, key = torch.randn(2, 5, 2, 4), torch.randn(2, num_keys, 2, 4)
        out, expected = compiled(query, key), layer(query, key)
        assert_close(out, expected)
        grads = [torch.autograd.grad(x.sum(), layer.table)[0] for x in (out, expected)]
        assert_close(*grads)


def test_exported_with_free_lengths():
    torch.manual_seed(1)
    layer = Attend()
    batch, queries, keys = (torch.export.Dim(name) for name in ("batch", "queries", "keys"))
    example = (torch.randn(2, 5, 2, 4), torch.randn(2, 7, 2, 4))
    shapes = ({0: batch, 1: queries}, {0: batch, 1: keys})
    exported = torch.export.export(layer, example, dynamic_shapes=shapes).module()
    query, key = torch.randn(3, 4, 2, 4), torch.randn(3, 9, 2, 4)
    assert_close(exported(query, key), layer(query, key))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key_table": None}, "expected key_table, query_table or both"),
        ({"key_table": torch.zeros(2, 5, 6)}, r"expected key_table \[3 or 1, distances, 6\]"),
        ({"key_table": torch.zeros(3, 5, 4)}, r"expected key_table \[3 or 1, distances, 6\]"),
        ({"key_table": torch.zeros(3, 0, 6)}, "expected key_table with a row"),
        ({"position_query": torch.zeros(2, 8, 3, 6)}, "expected position_query"),
        (
            {"key_table": torch.zeros(3, 5, 6, dtype=torch.int64)},
            "floating point as position_query",
        ),
        (
            {"key": torch.zeros(2, 9, 2, 6), "value": torch.zeros(2, 9, 2, 5)},
            "H a multiple of Hkv, got",
        ),
        ({"query": torch.zeros(7, 3, 6)}, r"expected query \[B, Mq, H, K\]"),
        ({"keep": torch.zeros(2, 9, dtype=torch.bool)}, "expected keep, bool"),
        ({"keep": torch.zeros(2, 1, 1, 9)}, "expected keep, bool"),
        ({"attn_bias": torch.zeros(2, 1, 4, 9)}, "expected attn_bias, floating"),
        ({"attn_bias": torch.zeros(2, 1, 1, 9, dtype=torch.int64)}, "expected attn_bias, floating"),
        ({"p": 1.5}, "a dropout probability p"),
        ({"position_query": torch.zeros(())}, r"expected position_query \[2, 9, 3, width\] with"),
        ({"scale": torch.inf}, "attend_by_position: expected a finite scale, got inf"),
        ({"position_key": torch.zeros(2, 9, 3, 6)}, "query_table with position_key, got None"),
        ({"key_table_rows": torch.zeros(9).long()}, r"key_table_rows, int32 \[distances\], got"),
        ({"key_table_rows": torch.zeros(0).int()}, r"key_table_rows, int32 \[distances\], got"),
        ({"key_table_rows": torch.tensor([17]).int()}, "expected key_table_rows within the 17"),
        ({"query_table_rows": torch.zeros(9).int()}, "query_table with query_table_rows, got None"),
        (
            {"query": torch.zeros(2, 9, 4, 3, dtype=torch.float64).mT},
            "attend_by_position: expected query's last stride to be 1",
        ),
        ({"value": torch.zeros(2, 8, 3, 5, dtype=torch.float64)}, "value"),
        ({"query_table": torch.zeros(3, 9, 4)}, "zero_row, .*distances, got 17 and 9 of them"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    tensors, options = make_call()
    with pytest.raises(ValueError, match=message):
        attend_by_position(**{**tensors, **options, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": 1.0}, "expected offset, an int, got 1.0"),
        ({"zero_row": torch.tensor(2)}, "expected zero_row, an int"),
        ({"window_left": 2.5}, "expected window_left, an int"),
        ({"scale": torch.ones((), requires_grad=True)}, "expected a number without a gradient"),
    ],
)
def test_what_is_no_number_is_named(change, message):
    tensors, options = make_call()
    with pytest.raises(TypeError, match=f"attend_by_position: {message}"):
        attend_by_position(**tensors, **(options | change))


def test_numbers_of_numpy_are_numbers():
    x, table = torch.randn(1, 5, 2, 4), torch.randn(2, 9, 4)
    found = attend_by_position(x, x, x, table, scale=np.float32(0.25), p=np.float32(0))
    assert torch.equal(found, attend_by_position(x, x, x, table, scale=0.25))
    assert torch.equal(found, attend_by_position(x, x, x, table, scale=0.25, p=False))
    with pytest.raises(TypeError, match="a number as p, the probability of dropping, got True of"):
        attend_by_position(x, x, x, table, p=True)


@pytest.mark.parametrize("has_autocast", [False, True])
def test_integers_are_no_inputs(has_autocast):
    x, features = torch.ones(1, 4, 1, 2, dtype=torch.int64), torch.randn(1, 4, 1, 2)
    table = torch.randn(1, 3, 2)
    with torch.autocast("cpu", enabled=has_autocast), pytest.raises(ValueError, match="dtype"):
        attend_by_position(x, x, x, table, position_query=features)
