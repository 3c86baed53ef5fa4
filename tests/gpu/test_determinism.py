"""The same bits on every run under load, and whatever else is in the batch."""

from dataclasses import fields, replace

import pytest
import torch

from gpu import device
from numerics import cases
from numerics.cases import Case, Shape, make_problem
from numerics.test_determinism import narrowed
from reference.problem import Results

REPEATS = 250
SHAPES = (
    Shape(60, 150, 333, 4, 2, 40, 24),  # many blocks, to bring races out
    Shape(2, 1, 9000, 4, 1, 64, 64),  # decoding: the keys are split
    Shape(1, 700, 700, 4, 4, 128, 128),
    Shape(3, 1000, 1000, 4, 2, 128, 128),  # many tiles of keys that take turns at the same dQ
)


@pytest.mark.parametrize("dtype", device.DTYPES)
@pytest.mark.parametrize("mask", ["none", "causal", "bias", "bias_expanded", "all_parts"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_repeats(shape, mask, dtype):
    call = device.prepared(cases.aligned(make_problem(Case(shape, mask, dtype))))
    first = call()
    for _ in range(REPEATS if device.DEVICE.type == "cuda" else 2):
        again = call()
        for field in fields(Results):
            mine, other = getattr(again, field.name), getattr(first, field.name)
            assert mine is other is None or device.same_bits(mine, other), field.name


@pytest.mark.parametrize("dtype", device.DTYPES)
@pytest.mark.parametrize("shape", SHAPES[1:3], ids=str)
def test_batch_entry_alone(shape, dtype):
    problem = make_problem(Case(replace(shape, B=3), "causal_bottom_right", dtype))
    together = device.run(problem)
    for b in range(3):
        alone = device.run(narrowed(problem, lambda x, b=b: x[b : b + 1]))
        for name in ("out", "lse", "grad_query", "grad_key", "grad_value"):
            mine, other = getattr(alone, name), getattr(together, name)[b : b + 1]
            assert device.same_bits(mine, other), name


@pytest.mark.usefixtures("needs_cuda")
def test_streams_side_by_side():
    problem = make_problem(Case(SHAPES[2], "causal_bottom_right", torch.bfloat16))
    expected = device.run(problem)
    streams = [torch.cuda.Stream() for _ in range(4)]
    outs = []
    for stream in streams:
        with torch.cuda.stream(stream):
            outs.append(device.forward(problem)[0])
    torch.cuda.synchronize()
    for out in outs:
        assert device.same_bits(out.cpu(), expected.out)
