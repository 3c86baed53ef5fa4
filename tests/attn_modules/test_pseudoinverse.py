"""The pseudoinverse by steps: its residual and size keep to what is promised, on any matrix."""

import pytest
import torch
from torch.testing import assert_close

from attn_modules._pseudoinverse import pseudoinverse, useful_steps
from reference.modules.nystrom import razavi

SIZE = 24
PROMISED = {1: (0.231, 1.3), 2: (0.132, 2.2), 4: (0.041, 6.8), 6: (0.0126, 22), 8: (0.0039, 71)}
PROMISED |= {10: (0.00120, 231), 13: (0.000205, 1351)}
"""steps -> largest residual over sqrt(|a|_1), largest norm of the result times sqrt(|a|_1)."""


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrices():
    """Return matrices of probabilities that are hard to invert, or cannot be."""
    step = torch.arange(SIZE, dtype=torch.float64)
    return {
        "identity": torch.eye(SIZE, dtype=torch.float64),
        "uniform": torch.full((SIZE, SIZE), 1 / SIZE, dtype=torch.float64),
        "one column": torch.eye(SIZE, dtype=torch.float64)[[3] * SIZE],
        "repeated rows": normal(SIZE // 2, SIZE).mul(3).softmax(-1).repeat(2, 1),
        "rank two": (3 * normal(SIZE, 2) @ normal(2, SIZE, seed=1)).softmax(-1),
        "nearly uniform": normal(SIZE, SIZE).mul(0.01).softmax(-1),
        "sharp": normal(SIZE, SIZE).mul(8).softmax(-1),
        "smooth": (-(step[:, None] - step).square() / 200).softmax(-1),
        "tall": normal(SIZE, SIZE // 3).softmax(-1),
        "wide": normal(SIZE // 3, SIZE).softmax(-1),
    }


HARD = pytest.mark.parametrize("a", matrices().values(), ids=matrices())


@HARD
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("steps", PROMISED)
def test_residual_and_norm_keep_their_bounds(a, dtype, steps):
    a = a.to(dtype)
    z = pseudoinverse(a, steps)
    residual, size = PROMISED[steps]
    scale = a.sum(0).max().sqrt()
    rounding = 4 * size * torch.finfo(dtype).eps
    assert torch.linalg.matrix_norm(a @ z @ a - a, 2) <= (residual + rounding) * scale
    assert torch.linalg.matrix_norm(z, 2) <= size * (1 + rounding) / scale


def test_bounds_are_attained():
    a = matrices()["smooth"]
    for steps, (residual, _) in PROMISED.items():
        z = pseudoinverse(a, steps)
        left = torch.linalg.matrix_norm(a @ z @ a - a, 2) / a.sum(0).max().sqrt()
        assert left > 0.3 * residual


@HARD
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_more_steps_than_are_useful_do_no_harm(a, dtype):
    a = a.to(dtype)
    z = pseudoinverse(a, 1000)
    scale = a.sum(0).max().sqrt()
    left = torch.linalg.matrix_norm(a @ z @ a - a, 2) / scale
    assert left <= (5e-4 if dtype == torch.float32 else 5e-8)


def test_steps_are_the_papers():
    a = matrices()["sharp"]
    assert_close(pseudoinverse(a, 3), razavi(a, 3))


def test_well_conditioned_matrices_are_inverted():
    a = (normal(SIZE, SIZE) + 9 * torch.eye(SIZE, dtype=torch.float64)).softmax(-1)
    assert_close(pseudoinverse(a, 12), torch.linalg.inv(a))
    assert (useful_steps(torch.float32), useful_steps(torch.float64)) == (13, 30)


def test_a_matrix_alone_gives_the_same_unless_the_start_is_shared():
    both = torch.stack([matrices()["sharp"], matrices()["nearly uniform"]])
    assert torch.equal(pseudoinverse(both, 6)[1], pseudoinverse(both[1:], 6)[0])
    shared = pseudoinverse(both, 6, shares_start=True)
    start = both.sum(-2).max()
    for a, z in zip(both, shared, strict=True):
        assert_close(z, razavi(a, 6, start))
    assert (shared[1] - pseudoinverse(both[1], 6)).abs().max() > 1e-3


def test_rows_and_columns_of_zeros_change_nothing():
    a = normal(5, 5).softmax(-1)
    larger = torch.zeros(7, 8, dtype=torch.float64)
    rows, columns = torch.tensor([0, 2, 3, 4, 6]), torch.tensor([1, 2, 4, 5, 7])
    larger[rows[:, None], columns] = a
    z = pseudoinverse(larger, 6)
    assert_close(z[columns[:, None], rows], pseudoinverse(a, 6))
    assert torch.count_nonzero(z) == 25
    assert not pseudoinverse(torch.zeros(2, 4, 4), 6).any()
