"""Memory beyond inputs and outputs does not grow with Mq x Mkv; offsets need more than 32 bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from attn_ops import _native
from numerics import library
from numerics.cases import Case, Shape, make_problem
from reference.error_rule import assert_accurate
from reference.problem import Mask, Problem

TESTS = Path(__file__).parent.parent
MEBIBYTE = 2**20


@pytest.mark.slow
@pytest.mark.skipif(_native.cpu_isa() == "scalar", reason="2e11 multiplications take minutes")
@pytest.mark.parametrize(
    ("extents", "mask"),
    [
        ({"Mq": 32768, "Mkv": 32768, "K": 64, "Kv": 64}, "causal"),
        ({"Mq": 1, "Mkv": 2**20, "Hq": 8, "Hkv": 1, "K": 16, "Kv": 16}, "none"),
        ({"Mq": 65537, "Mkv": 3, "K": 8, "Kv": 8}, "none"),
        ({"Mq": 3000, "Mkv": 5000, "K": 8, "Kv": 8}, "bias_per_key"),
    ],
    ids=["square", "one_query", "three_keys", "bias_gradient"],
)
def test_growth_of_forward_and_backward(extents, mask):
    done = subprocess.run(
        [sys.executable, "-m", "numerics.peak_memory", json.dumps(extents), mask, "float32"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 64 * MEBIBYTE


def sparse(path: Path, elements: int, dtype: type[np.generic]) -> Tensor:
    """Return a tensor of zeros, of which only the pages that are written take space."""
    return torch.from_numpy(np.memmap(path, dtype=dtype, mode="w+", shape=(elements,)))


def far_apart(values: Tensor, path: Path, step: int) -> Tensor:
    """Return a copy of a float32 tensor whose first extent greater than 1 has stride `step`."""
    axis = next(a for a, extent in enumerate(values.shape) if extent > 1)
    strides = list(values.contiguous().stride())
    strides[axis] = step
    memory = sparse(path, step * values.shape[axis], np.float32)
    view = memory.as_strided(values.shape, strides)
    view.copy_(values)
    return view


@pytest.mark.parametrize("shape", [(2, 1, 40, 70), (1, 3, 1, 70), (1, 1, 5, 70), (1, 1, 1, 70)])
def test_bias_strides_beyond_32_bits(shape, tmp_path):
    queries = max(shape[2], 5)
    case = Case(Shape(2, queries, 70, 3, 3, 8, 8), "none", torch.float32)
    problem = make_problem(case)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    bias = far_apart(values, tmp_path / "bias", 2**31 + 64)
    problem = with_mask(problem, Mask(bias=bias))
    assert_accurate(library.run(problem), problem)


@pytest.mark.parametrize("field", ["query", "key", "value"])
def test_operand_strides_beyond_32_bits(field, tmp_path):
    problem = make_problem(Case(Shape(2, 9, 17, 2, 2, 8, 8), "none", torch.float32))
    operand = far_apart(getattr(problem, field), tmp_path / field, 2**31 + 64)
    problem = Problem(**{**vars(problem), field: operand})
    assert_accurate(library.run(problem), problem)


def test_bias_of_more_than_2_31_elements(tmp_path):
    """Eight queries and 2^28 + 1 keys, of which a window leaves the last 40."""
    num_queries, num_keys, seen = 8, 2**28 + 1, 40
    problem = make_problem(Case(Shape(Mq=num_queries, Mkv=seen, K=4, Kv=4), "none", torch.float32))
    bias = sparse(tmp_path / "bias", num_queries * num_keys, np.float32)
    bias = bias.view(1, 1, num_queries, num_keys)
    bias[..., -seen:] = torch.randn(num_queries, seen, generator=torch.Generator().manual_seed(2))
    window = {"left": 20, "right": 0, "anchor": "bottom_right"}
    many = Problem(
        **{
            **vars(problem),
            "key": before(problem.key, tmp_path / "key", num_keys),
            "value": before(problem.value, tmp_path / "value", num_keys),
            "mask": Mask(bias=bias, **window),
        }
    )
    few = with_mask(problem, Mask(bias=bias[..., -seen:].clone(), **window))
    out, lse = library.forward(many)
    expected_out, expected_lse = library.forward(few)
    torch.testing.assert_close(out, expected_out, rtol=0, atol=1e-6)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=1e-6)


def before(last: Tensor, path: Path, num_keys: int) -> Tensor:
    """Return `num_keys` keys of which the last are `last` and the others 0."""
    batch, seen, heads, width = last.shape
    rows = sparse(path, num_keys * heads * width, np.float32).view(batch, num_keys, heads, width)
    rows[:, num_keys - seen :] = last
    return rows


def with_mask(problem: Problem, mask: Mask) -> Problem:
    return Problem(**{**vars(problem), "mask": mask})
