"""The promises of ARCHITECTURE.md under sequences, pages, blocks and numbers per head."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from attn_ops import _autograd
from attn_ops.mask import MaskSpec, Relative, Sequences
from numerics import spec_cases
from numerics.cases import DTYPES
from reference import mask_spec, spec_attention
from reference.error_rule import assert_within_rule
from reference.spec_attention import Call

GRID = [
    pytest.param(
        place, part, DTYPES[(2 * p + q) % 4], id=f"{place}-{part}-{DTYPES[(2 * p + q) % 4]}"
    )
    for (p, place), (q, part) in product(enumerate(spec_cases.PLACES), enumerate(spec_cases.PARTS))
]
SEQUENCES = ("packed", "overlapping", "paged")


def assert_accurate(got: dict[str, Tensor], call: Call) -> None:
    exact = spec_attention.results(call, torch.float64)
    eager = spec_attention.results(call, call.query.dtype)
    if call.query.dtype.itemsize == 2:  # ours is float32
        eager["lse"] = spec_attention.attention(call.leaves(torch.float32)[0])[1].detach()
    assert got.keys() == exact.keys()
    for name, result in got.items():
        assert_within_rule(
            name, result, exact=exact[name], yardstick=eager[name], dtype=call.query.dtype
        )


@pytest.mark.parametrize(("place", "part", "dtype"), GRID)
def test_as_accurate_as_eager(place, part, dtype):
    call = spec_cases.make(place, part, dtype)
    assert_accurate(spec_cases.run(call), call)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", spec_cases.PLACES)
def test_every_part_in_every_dtype(place, dtype):
    call = spec_cases.make(place, "all", dtype)
    assert_accurate(spec_cases.run(call), call)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", spec_cases.PLACES)
def test_same_bits_for_any_number_of_threads(place, dtype):
    call = spec_cases.make(place, "all", dtype)
    first = spec_cases.run(call)
    for threads in (2, 3, 2):
        torch.set_num_threads(threads)  # the fixture sets it back
        for name, result in spec_cases.run(call).items():
            assert torch.equal(result, first[name]), f"{name} differs on {threads} threads"


def alone(call: Call, queries: range, slots: list[int]) -> Call:
    """Return one sequence of the call as a call of its own."""
    rows = slice(queries.start, queries.stop)
    return replace(
        call,
        query=call.query[:, rows],
        key=call.key[:, slots],
        value=call.value[:, slots],
        grad_out=call.grad_out[:, rows],
        grad_lse=call.grad_lse[:, :, rows],
        spec=replace(call.spec, sequences=None, pages=None),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("part", ["causal", "relative", "sink", "softcap"])
@pytest.mark.parametrize("place", SEQUENCES)
def test_a_sequence_has_the_bits_it_has_alone(place, part, dtype):
    call = spec_cases.make(place, part, dtype)
    together = spec_cases.run(call)
    for queries, slots in mask_spec.sequences(call.spec, spec_cases.MQ, spec_cases.MKV):
        mine = spec_cases.run(alone(call, queries, slots))
        rows = slice(queries.start, queries.stop)
        assert torch.equal(mine["out"], together["out"][:, rows])
        assert torch.equal(mine["lse"], together["lse"][:, :, rows])
        assert torch.equal(mine["grad_query"], together["grad_query"][:, rows])
        if place == "packed":  # elsewhere sequences share keys
            assert torch.equal(mine["grad_key"], together["grad_key"][:, slots])
            assert torch.equal(mine["grad_value"], together["grad_value"][:, slots])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("canary", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["causal", "all"])
@pytest.mark.parametrize("place", spec_cases.PLACES)
def test_canary_in_keys_that_nobody_sees_reaches_no_result(place, part, canary, dtype):
    call = spec_cases.make(place, part, dtype)
    clean = spec_cases.run(call)
    for name, result in spec_cases.run(spec_cases.poisoned(call, canary)).items():
        assert torch.equal(result, clean[name]), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [*SEQUENCES, "blocks"])
def test_rows_without_keys(place, dtype):
    call = spec_cases.make(place, "causal", dtype)
    sizes = (1, spec_cases.HQ, spec_cases.MQ, spec_cases.MKV)
    empty = ~mask_spec.allowed(call.spec, *sizes).any(-1).expand(sizes[:3])
    results = spec_cases.run(call)
    assert empty.any()
    assert torch.all(results["lse"][empty] == -math.inf)
    assert torch.all(results["out"].transpose(1, 2)[empty] == 0)
    assert torch.all(results["grad_query"].transpose(1, 2)[empty] == 0)


def small() -> tuple[Tensor, ...]:
    """Return leaves of a problem of 7 queries and 9 keys, then slopes, table and sink."""
    torch.manual_seed(7)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).requires_grad_()

    heads = 4
    rows = (leaf(1, 7, heads, 3), leaf(1, 9, 2, 3), leaf(1, 9, 2, 2))
    return (*rows, leaf(heads), leaf(heads, 5), leaf(heads))


SMALL = {
    "whole": MaskSpec(),
    "packed": MaskSpec(
        sequences=Sequences(spec_cases.integers([0, 2, 6]), spec_cases.integers([1, 4, 9]))
    ),
    "overlapping": MaskSpec(
        sequences=Sequences(
            spec_cases.integers([0, 2, 7]), spec_cases.integers([0, 2]), spec_cases.integers([6, 6])
        )
    ),
}


@pytest.mark.parametrize("spec", SMALL.values(), ids=SMALL)
def test_gradcheck_of_numbers_per_head_and_of_the_log_sum_exp(spec):
    def attend(query, key, value, slopes, table, sink):
        whole = replace(spec, relative=Relative(slopes, table), sink=sink, softcap=1.5)
        out, lse = _autograd.attend_with_lse(query, key, value, whole, 0.6, None)
        return out, lse[lse.isfinite()]

    assert torch.autograd.gradcheck(attend, small())


@pytest.mark.parametrize("num_keys", [1, 560])
def test_gradient_of_a_bias_that_many_sequences_share_is_rounded_once(num_keys):
    call = spec_cases.make("packed", "plain", torch.bfloat16)
    queries, keys = call.query.shape[1], call.key.shape[1]
    count = min(queries, 200)
    generator = torch.Generator().manual_seed(0)
    bias = torch.randn(1, call.query.shape[2], 1, min(num_keys, keys), generator=generator)
    spec = MaskSpec(
        sequences=Sequences(
            q_start=torch.arange(count + 1, dtype=torch.int32),
            k_start=torch.zeros(count, dtype=torch.int32),
            k_len=torch.full((count,), 32, dtype=torch.int32),
        ),
        bias=bias.to(torch.bfloat16),
    )
    call = replace(call, spec=spec)
    assert_accurate(spec_cases.run(call), call)
