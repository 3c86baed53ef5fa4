"""Any extents, strides, dtypes and parts of a mask: the results keep the error rule."""

import math

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from numerics import library
from numerics.cases import DTYPES
from reference.error_rule import assert_accurate
from reference.problem import Mask, Problem


class Source:
    """Random numbers of one problem, and the layouts that hypothesis chose for them."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype, *, unit_last: bool) -> Tensor:
        """Return normal numbers (or fair coins) under any strides; the last 1 if `unit_last`."""
        ndim = len(shape)
        order = self.draw(st.permutations(range(ndim - unit_last)))
        order = [*order, ndim - 1] if unit_last else order
        gaps = [self.draw(st.integers(0, 2)) for _ in shape]
        steps = [1 if unit_last and axis == ndim - 1 else 1 + gaps[axis] for axis in range(ndim)]
        stored = [shape[axis] * steps[axis] + gaps[axis] for axis in order]
        values = torch.randn(stored, generator=self.generator)
        values = values < 0.5 if dtype == torch.bool else values.to(dtype)
        values = values.permute([order.index(axis) for axis in range(ndim)])
        for axis, step in enumerate(steps):
            # Past the gap in front, so that no view begins where its memory does.
            values = values.narrow(axis, gaps[axis], shape[axis] * step)
            values = values[(slice(None),) * axis + (slice(None, None, step),)]
        return values

    def rows(self, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
        """Return [B, M, H, K], one batch entry or head repeated now and then."""
        own = [n if self.draw(st.integers(0, 4)) else min(1, n) for n in shape[:3:2]]
        narrow = self.tensor((own[0], shape[1], own[1], shape[3]), dtype, unit_last=True)
        return narrow.expand(shape)

    def mask(self, scores: tuple[int, int, int, int], dtype: torch.dtype) -> Mask:
        """Return a mask of any parts."""
        draw = self.draw
        side = st.one_of(st.none(), st.integers(-3, 70))
        bias = None
        if draw(st.booleans()):
            extents = tuple(n if draw(st.booleans()) else 1 for n in scores)
            kind = draw(st.sampled_from((dtype, torch.float32, torch.bool)))
            bias = self.tensor(extents, kind, unit_last=False)
            if kind != torch.bool and draw(st.booleans()):
                bias = bias.masked_fill(bias > 1.0, -math.inf)
            if draw(st.booleans()):
                bias = bias.expand(scores)
        return Mask(
            left=draw(side),
            right=draw(side),
            anchor=draw(st.sampled_from(("top_left", "bottom_right"))),
            bias=bias,
            dropout_p=draw(st.sampled_from((0.0, 0.0, 0.25, 1.0))),
            dropout_seed=draw(st.integers(0, 2**64 - 1)),
            dropout_offset=draw(st.integers(0, 2**64 - 1)),
        )


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    source = Source(draw)
    length = st.one_of(st.integers(0, 9), st.integers(10, 300))
    width = st.one_of(st.integers(1, 9), st.integers(10, 100))
    batch, num_queries, num_keys = draw(st.integers(0, 3)), draw(length), draw(length)
    key_heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    heads, K, Kv = key_heads * groups, draw(width), draw(width)
    dtype = draw(st.sampled_from(DTYPES))
    lse_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return Problem(
        query=source.rows((batch, num_queries, heads, K), dtype),
        key=source.rows((batch, num_keys, key_heads, K), dtype),
        value=source.rows((batch, num_keys, key_heads, Kv), dtype),
        mask=source.mask((batch, heads, num_queries, num_keys), dtype),
        scale=draw(st.sampled_from((K**-0.5, 0.25, 0.0, -0.5))),
        grad_out=source.rows((batch, num_queries, heads, Kv), dtype),
        grad_lse=source.tensor((batch, heads, num_queries), lse_dtype, unit_last=False),
    )


@settings(
    max_examples=250,
    derandomize=True,  # the same problems on every machine
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(problem=problems())
def test_random_problem_is_as_accurate_as_eager(problem):
    assert_accurate(library.run(problem), problem)
