"""Forward, log-sum-exp and gradients against float64, over shapes, masks, dtypes and layouts."""

import pytest

from numerics import cases, library
from reference.error_rule import assert_accurate


@pytest.mark.parametrize("case", cases.shape_grid(), ids=str)
def test_shape_is_as_accurate_as_eager(case):
    problem = cases.make_problem(case)
    assert_accurate(library.run(problem), problem)


@pytest.mark.parametrize("case", cases.mask_grid(), ids=str)
def test_mask_is_as_accurate_as_eager(case):
    problem = cases.make_problem(case)
    assert_accurate(library.run(problem), problem)


@pytest.mark.parametrize("case", cases.few_keys_grid(), ids=str)
def test_few_keys_are_as_accurate_as_eager(case):
    problem = cases.make_problem(case)
    assert_accurate(library.run(problem), problem)
