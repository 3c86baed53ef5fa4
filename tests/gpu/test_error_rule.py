"""The CPU's grid of shapes, masks and dtypes on a GPU, against float64."""

from itertools import product

import pytest
import torch

from gpu import device
from numerics import cases, spec_cases
from numerics.test_whole_mask import assert_accurate as assert_call_is_accurate
from reference.error_rule import assert_accurate


def served(grid):
    return [
        case
        for case in grid
        if case.dtype != torch.float64 and max(case.shape.K, case.shape.Kv) <= 256
    ]


@pytest.mark.parametrize("case", served(cases.shape_grid()), ids=str)
def test_shape_is_as_accurate_as_eager(case):
    problem = cases.make_problem(case)
    assert_accurate(device.run(problem), problem)


@pytest.mark.parametrize("case", served(cases.mask_grid()), ids=str)
def test_mask_is_as_accurate_as_eager(case):
    problem = cases.make_problem(case)
    assert_accurate(device.run(problem), problem)


@pytest.mark.parametrize("case", served(cases.few_keys_grid()), ids=str)
def test_few_keys_are_as_accurate_as_eager(case):
    problem = cases.make_problem(case)
    assert_accurate(device.run(problem), problem)


WIDTHS = [1, 8, 31, 32, 33, 64, 65, 96, 97, 128, 129, 192, 193, 256]


@pytest.mark.parametrize("dtype", device.DTYPES)
@pytest.mark.parametrize("mask", ["none", "all_parts"])
@pytest.mark.parametrize("width", WIDTHS)
def test_width_is_as_accurate_as_eager(width, mask, dtype):
    shape = cases.Shape(2, 150, 333, 4, 2, width, width)
    problem = cases.make_problem(cases.Case(shape, mask, dtype))
    assert_accurate(device.run(problem), problem)


ALIGNED = ("none", "causal", "window_before_diagonal", "bias", "bias_per_key", "bias_expanded")


@pytest.mark.parametrize("dtype", device.DTYPES)
@pytest.mark.parametrize("mask", [*ALIGNED, "bias_with_excluded_keys"])
@pytest.mark.parametrize("width", [64, 128])
def test_aligned_rows_are_as_accurate_as_eager(width, mask, dtype):
    """Several tiles of queries and keys, whose rows asynchronous copies take."""
    shape = cases.Shape(2, 300, 392, 4, 2, width, width)
    problem = cases.aligned(cases.make_problem(cases.Case(shape, mask, dtype)))
    assert_accurate(device.run(problem), problem)


PARTS = list(product(spec_cases.PLACES, spec_cases.PARTS))


@pytest.mark.parametrize("dtype", device.DTYPES)
@pytest.mark.parametrize(("place", "part"), PARTS)
def test_place_and_part_are_as_accurate_as_eager(place, part, dtype):
    call = spec_cases.make(place, part, dtype)
    results = spec_cases.run(device.on_device(call))
    assert_call_is_accurate({name: x.cpu() for name, x in results.items()}, call)


@pytest.mark.usefixtures("needs_cuda")
def test_what_no_kernel_serves_is_refused():
    for dtype, width in ((torch.float64, 8), (torch.float16, 257)):
        shape = cases.Shape(K=width, Kv=width)
        with pytest.raises(RuntimeError, match="on a GPU"):
            device.run(cases.make_problem(cases.Case(shape, "none", dtype)))
