"""The problems that the numerics tests run: shapes like xFormers' own, masks, dtypes, layouts."""

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from reference.problem import Mask, Problem

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Shape:
    """Extents, in the project's letters; one head unless told otherwise."""

    B: int = 1
    Mq: int = 32
    Mkv: int = 64
    Hq: int = 1
    Hkv: int = 1
    K: int = 32
    Kv: int = 32

    def __str__(self) -> str:
        heads = f"H{self.Hq}" if self.Hq == self.Hkv else f"H{self.Hq}over{self.Hkv}"
        width = f"K{self.K}" if self.Kv == self.K else f"K{self.K}Kv{self.Kv}"
        return f"B{self.B}-M{self.Mq}x{self.Mkv}-{heads}-{width}"


@dataclass(frozen=True)
class Case:
    """A shape with a mask's name and a dtype."""

    shape: Shape
    mask: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.shape}-{self.mask}-{str(self.dtype).removeprefix('torch.')}"


class Draw:
    """Random tensors of one case: the same on every run and every machine."""

    def __init__(self, case: Case) -> None:
        self._generator = torch.Generator().manual_seed(zlib.crc32(str(case).encode()))
        self.shape = case.shape
        self.dtype = case.dtype

    @property
    def scores(self) -> tuple[int, int, int, int]:
        """The shape [B, Hq, Mq, Mkv] of the scores."""
        return self.shape.B, self.shape.Hq, self.shape.Mq, self.shape.Mkv

    def integer(self, end: int) -> int:
        """Return an integer in [0, end)."""
        return int(torch.randint(end, (), generator=self._generator))

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return standard normal numbers, of the case's dtype unless told otherwise."""
        return torch.randn(shape, generator=self._generator).to(dtype or self.dtype)

    def chance(self, *shape: int, p: float) -> Tensor:
        """Return a bool tensor that is True with chance `p`."""
        return torch.rand(shape, generator=self._generator) < p

    def rows(self, length: int, heads: int, width: int) -> Tensor:
        """Return [B, length, heads, width], laid out in one of the ways that models use."""
        batch = self.shape.B
        layout = self.integer(3)
        if layout == 0:
            return self.normal(batch, length, heads, width)
        if layout == 1:  # heads before positions, as most models have them
            return self.normal(batch, heads, length, width).transpose(1, 2)
        return self.normal(batch, length, 2, heads, width + 3)[:, :, 1, :, 1 : width + 1]  # packed

    def bias(self, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return an additive bias for every score."""
        return self.normal(*self.scores, dtype=dtype)


def _bias_with_excluded_keys(draw: Draw) -> Tensor:
    bias = draw.bias()
    bias[draw.chance(*bias.shape, p=0.3)] = -math.inf
    bias[:, :, draw.integer(draw.shape.Mq)] = -math.inf
    return bias


BANDS = {
    "none": Mask(),
    "causal": Mask(right=0),
    "causal_bottom_right": Mask(right=0, anchor="bottom_right"),
    "window": Mask(left=5, right=2),
    "window_bottom_right": Mask(left=40, right=0, anchor="bottom_right"),
    "window_before_diagonal": Mask(left=20, right=-3),
}

BIASES: dict[str, Callable[[Draw], Tensor]] = {
    "bias": lambda draw: draw.bias(),
    "bias_float32": lambda draw: draw.bias(dtype=torch.float32),
    "bias_per_key": lambda draw: draw.normal(1, draw.shape.Hq, 1, draw.shape.Mkv),
    "bias_per_query": lambda draw: draw.normal(draw.shape.B, 1, draw.shape.Mq, 1),
    "bias_single": lambda draw: draw.normal(1, 1, 1, 1),
    "bias_transposed": lambda draw: draw.normal(1, draw.shape.Hq, draw.shape.Mkv, draw.shape.Mq).mT,
    "bias_strided": lambda draw: draw.normal(draw.shape.B, 1, draw.shape.Mq, 3 * draw.shape.Mkv)[
        ..., 1::3
    ],
    "bias_expanded": lambda draw: draw.bias()[:1].expand(draw.shape.B, -1, -1, -1),
    "bias_with_excluded_keys": _bias_with_excluded_keys,
    "keep": lambda draw: draw.chance(*draw.scores, p=0.5),
    "keep_per_key": lambda draw: draw.chance(draw.shape.B, 1, 1, draw.shape.Mkv, p=0.7),
    "keep_transposed": lambda draw: (
        draw.chance(draw.shape.B, 1, draw.shape.Mkv, draw.shape.Mq, p=0.5).mT
    ),
}

MASKS = (*BANDS, *BIASES, "dropout", "all_parts")


def make_mask(name: str, draw: Draw) -> Mask:
    """Return the mask of this name for the shape and dtype of `draw`."""
    if name in BANDS:
        return BANDS[name]
    if name in BIASES:
        return Mask(bias=BIASES[name](draw))
    if name == "dropout":
        return Mask(dropout_p=0.3, dropout_seed=draw.integer(2**60))
    return Mask(
        left=60,
        right=9,
        anchor="bottom_right",
        bias=draw.bias(dtype=torch.float32)[:1],
        dropout_p=0.5,
        dropout_seed=2**63 + draw.integer(2**60),
        dropout_offset=draw.integer(2**60),
    )


def make_problem(case: Case) -> Problem:
    """Return the problem of a case, with a scale other than the default one now and then."""
    draw, s = Draw(case), case.shape
    lse_dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
    return Problem(
        query=draw.rows(s.Mq, s.Hq, s.K),
        key=draw.rows(s.Mkv, s.Hkv, s.K),
        value=draw.rows(s.Mkv, s.Hkv, s.Kv),
        mask=make_mask(case.mask, draw),
        scale=s.K**-0.5 if draw.integer(3) else 0.25,
        grad_out=draw.rows(s.Mq, s.Hq, s.Kv),
        grad_lse=draw.normal(s.B, s.Hq, s.Mq, dtype=lse_dtype),
    )


def aligned(problem: Problem) -> Problem:
    """Return `problem` with its rows side by side, as asynchronous copies can take them."""
    rows = ("query", "key", "value", "grad_out")
    return replace(problem, **{name: getattr(problem, name).contiguous() for name in rows})


def shapes() -> Iterator[Shape]:
    """Yield the shapes of xFormers' tests, and grouped heads."""
    odd_lengths = (1, 2, 3, 15, 31, 32, 34, 68, 72, 90, 132, 136)
    yield from (Shape(Mq=length, Mkv=128) for length in odd_lengths)
    yield from (Shape(Mq=256, Mkv=length) for length in odd_lengths)
    yield from (Shape(Mq=Mq, Mkv=Mkv) for Mq, Mkv in product((32, 256), (32, 256, 1024)))
    widths = (1, 2, 3, 31, 34, 36, 38, 40, 64, 80, 128, 160, 258, 264, 512)
    yield from (Shape(K=width, Kv=width) for width in widths)
    yield from (Shape(K=K, Kv=Kv) for K, Kv in product((1, 31, 36, 264), (3, 32, 64, 264)))
    yield from (Shape(K=16, Kv=1024), Shape(K=1024, Kv=16))
    yield from (Shape(B=2, Hq=heads, Hkv=heads) for heads in (3, 5, 12))
    for heads, key_heads in ((2, 1), (8, 1), (8, 4), (12, 4), (16, 2)):
        yield from (Shape(2, Mq, 67, heads, key_heads, 40, 40) for Mq in (1, 3, 130))
    yield from (Shape(2, 1, Mkv, 6, 2, 64, 64) for Mkv in (1023, 1025, 4099))  # decoding
    yield Shape(1, 128, 128, 300, 300, 16, 16)
    yield Shape(13, 1, 67, 200, 200, 8, 8)
    yield Shape(1, 65537, 4, 1, 1, 8, 8)
    yield Shape(1, 4, 65537, 1, 1, 8, 8)
    yield Shape(300, 7, 5, 1, 1, 9, 9)


def shape_grid() -> list[Case]:
    """Return every shape in every dtype, with the masks in turn."""
    return [
        Case(shape, MASKS[(s + 5 * d) % len(MASKS)], dtype)
        for (s, shape), (d, dtype) in product(enumerate(shapes()), enumerate(DTYPES))
    ]


def mask_grid() -> list[Case]:
    """Return every mask in every dtype, on shapes that make whole, partial and skipped tiles."""
    several = (
        Shape(2, 37, 101, 3, 3, 31, 40),
        Shape(1, 300, 270, 4, 2, 24, 24),
        Shape(2, 1, 2305, 8, 1, 16, 16),  # decoding: the keys are split
        Shape(1, 141, 19, 1, 1, 8, 8),
    )
    return [Case(*parts) for parts in product(several, MASKS, DTYPES)]


def few_keys_grid() -> list[Case]:
    """Return shapes of so few keys that little is left of dP - rowsum(dO * O)."""
    queries, keys, widths = (1, 2, 3), range(1, 7), ((7, 53), (64, 64), (33, 5), (80, 19))
    return [
        Case(Shape(1, Mq, Mkv, 1, 1, K, Kv), "none", dtype)
        for Mq, Mkv, (K, Kv), dtype in product(queries, keys, widths, DTYPES[1:3])
    ]
