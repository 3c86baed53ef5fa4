"""Scores of relative positions, forward and backward, against float64 pair by pair."""

import math
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_ops.mask import UNBOUNDED
from gpu import device
from reference.continual import positions
from reference.error_rule import assert_within_rule

Options = dict[str, Any]
OP = torch.ops.attn_ops.attention_by_position
CASES = {
    "transformer_xl": {"rows": 440, "window_right": 20},
    "clipped": {"rows": 33, "zero_row": 30, "table_heads": 1},
    "one_row": {"rows": 1, "window_left": 70},
    "keys_too": {"rows": 129, "widths": (72, 17), "key_heads": 2},
    "keys_alone": {"rows": 40, "widths": (0, 64), "zero_row": -7},
    "wide": {"rows": 440, "widths": (128, 128), "width": 128},
    "decoding": {"rows": 440, "queries": 1, "zero_row": 60, "widths": (64, 64)},
    "content": {"rows": 50, "widths": (64, 64), "is_content": True},
    "buckets": {"rows": 9, "widths": (64, 64), "buckets": 200},
}


def make_call(
    name: str,
    dtype: torch.dtype,
    *,
    queries: int = 150,
    keys: int = 290,
    key_heads: int = 4,
    width: int = 64,
    rows: int = 1,
    widths: tuple[int, int] = (64, 0),
    table_heads: int = 4,
    is_content: bool = False,
    buckets: int = 0,
    **options: int,
) -> tuple[dict[str, Tensor], Options]:
    """Return the tensors of a call, on the CPU, and what else it takes."""
    draw = torch.Generator().manual_seed(zlib.crc32(f"{name}-{dtype}".encode()))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    tensors = {
        "query": normal(2, queries, 4, width),
        "key": normal(2, keys, key_heads, width),
        "value": normal(2, keys, key_heads, width),
    }
    of_queries, of_keys = widths
    if of_queries:
        tensors["position_query"] = normal(2, queries, 4, of_queries)
        tensors["key_table"] = normal(table_heads, rows, of_queries)
    if of_keys:
        tensors["position_key"] = normal(2, keys, 4, of_keys)
        tensors["query_table"] = normal(table_heads, rows, of_keys)
    if is_content:  # the query and the key stand for them
        del tensors["position_query"], tensors["position_key"]
    taken: Options = {"zero_row": (buckets or rows) // 2, **options}
    if buckets:
        taken["table_rows"] = torch.randint(rows, (buckets,), generator=draw, dtype=torch.int32)
    return tensors, taken


def attend(
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    zero_row: int,
    window_left: int = UNBOUNDED,
    window_right: int = UNBOUNDED,
    table_rows: Tensor | None = None,
    **named: Tensor,
) -> Tensor:
    """Return the operator's output."""
    others: dict[str, Any] = {"band_left": window_left, "band_right": window_right}
    if table_rows is not None:
        rows = table_rows.to(device.DEVICE)
        others |= {f"{name}_rows": rows for name in named if name.endswith("table")}
    return OP(query, key, value, **others, **named, zero_row=zero_row)[0]


def attend_pair_by_pair(table_rows: Tensor | None = None, **named: Any) -> Tensor:
    """Return the reference's output, of tables with a row for each distance."""
    if table_rows is not None:
        for name in ("key_table", "query_table"):
            named[name] = named[name][:, table_rows.long()]
    return positions.attend(**named)


def results(
    function: Callable[..., Tensor], tensors: dict[str, Tensor], options: Options
) -> dict[str, Tensor]:
    """Return the output of `function` and every gradient, on the CPU."""
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    out = function(**leaves, **options)
    draw = torch.Generator().manual_seed(3)
    grad = torch.randn(out.shape, generator=draw).to(tensors["query"].dtype).to(out)
    grads = torch.autograd.grad(out, list(leaves.values()), grad)
    named = {f"grad_{name}": x for name, x in zip(leaves, grads, strict=True)}
    return {name: x.detach().cpu() for name, x in {"out": out, **named}.items()}


def run(tensors: dict[str, Tensor], options: Options) -> dict[str, Tensor]:
    """Return what the device computes."""
    there = {name: x.to(device.DEVICE) for name, x in tensors.items()}
    return results(attend, there, options)


@pytest.mark.parametrize("dtype", device.DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_as_accurate_as_eager(case, dtype):
    tensors, options = make_call(case, dtype, **CASES[case])
    wide = {name: x.double() for name, x in tensors.items()}
    exact = results(attend_pair_by_pair, wide, options)
    eager = results(attend_pair_by_pair, tensors, options)
    for name, got in run(tensors, options).items():
        assert_within_rule(name, got, exact=exact[name], yardstick=eager[name], dtype=dtype)


@pytest.mark.parametrize("dtype", device.DTYPES)
def test_canary_in_features_of_unseen_keys_reaches_no_result(dtype):
    tensors, options = make_call("canary", dtype, rows=33, widths=(64, 64), window_right=20)
    unseen = torch.arange(290)[:, None, None] > 149 + 20
    names = ("key", "value", "position_key")
    poisoned = {name: tensors[name].masked_fill(unseen, math.nan) for name in names}
    clean, mine = run(tensors, options), run({**tensors, **poisoned}, options)
    for name, result in mine.items():
        assert device.same_bits(result, clean[name]), name


@pytest.mark.parametrize("dtype", device.DTYPES)
def test_repeats(dtype):
    tensors, options = make_call("repeats", dtype, rows=33, widths=(64, 64), key_heads=2)
    first = run(tensors, options)
    for _ in range(50 if device.DEVICE.type == "cuda" else 2):
        for name, result in run(tensors, options).items():
            assert device.same_bits(result, first[name]), name
