"""A small grid for compute-sanitizer: each kernel once, ragged tiles, every part of the mask."""

import pytest
import torch

from gpu import device
from numerics import spec_cases
from numerics.cases import Case, Shape, aligned, make_problem

SHAPES = (
    Shape(2, 70, 131, 2, 1, 40, 24),
    Shape(1, 65, 129, 1, 1, 128, 128),
    Shape(1, 1, 2100, 4, 1, 64, 64),
)
WIDTHS = (64, 128)


@pytest.mark.parametrize("dtype", device.DTYPES)
@pytest.mark.parametrize("mask", ["none", "all_parts"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shape(shape, mask, dtype):
    results = device.run(make_problem(Case(shape, mask, dtype)))
    assert torch.isfinite(results.out).all()


# What asynchronous copies take: the plain kernels, the backward in one pass, several of its turns.
@pytest.mark.parametrize("dtype", device.DTYPES)
@pytest.mark.parametrize("mask", ["none", "causal", "window", "bias", "bias_expanded"])
@pytest.mark.parametrize("width", WIDTHS)
def test_aligned_rows(width, mask, dtype):
    shape = Shape(2, 150, 392, 2, 1, width, width)
    results = device.run(aligned(make_problem(Case(shape, mask, dtype))))
    assert torch.isfinite(results.out).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", ["plain", "all"])
@pytest.mark.parametrize("place", spec_cases.PLACES)
def test_place(place, part, dtype):
    results = spec_cases.run(device.on_device(spec_cases.make(place, part, dtype)))
    assert torch.isfinite(results["out"]).all()
