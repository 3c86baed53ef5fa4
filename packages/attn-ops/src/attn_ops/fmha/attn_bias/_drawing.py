"""Pictures of masks: which keys each query sees, with a colour for each sequence."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from attn_ops.fmha.attn_bias import _dense

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

    from attn_ops.mask import MaskSpec

_MOST_CELLS: Final = 96
_DEFAULT_SHAPE: Final = (16, 16)
_UNSEEN: Final = "#eeeeee"
_COLOURS: Final = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#ee8866",
    "#44bb99",
)


@dataclass(frozen=True)
class Picture:
    """A mask on a grid: one cell for each query and key, or for a few where there are many."""

    title: str
    num_queries: int
    num_keys: int
    sequence: Tensor
    """int64 [rows, columns]: the sequence in which the key is seen; -1 where it is not."""


def picture(title: str, spec: MaskSpec, shape: tuple[int, int] | None) -> Picture:
    """Evaluate `spec` for `shape`, Mq and Mkv, at no more than a few thousand places.

    Where heads differ the first is shown; a bias that is added shows only where it hides keys.
    """
    num_queries, num_keys = _shape_of(spec) if shape is None else shape
    with torch.device("cpu"):  # whatever the default is
        queries, keys = _sample(num_queries), _sample(num_keys)
        places = _dense.locate(spec, num_queries, num_keys, queries, keys)
        seen = _dense.seen_at(spec, places)
    if spec.bias is not None:
        seen = seen & _shown_by_bias(spec.bias, queries, keys)
    seen = seen[0] if seen.dim() == 3 else seen
    return Picture(title, num_queries, num_keys, places.sequence.masked_fill(~seen, -1))


def svg(drawn: Picture) -> str:
    """Return the picture as an SVG image."""
    rows, columns = drawn.sequence.shape
    cell = max(2.0, min(16.0, 320 / max(rows, columns, 1)))
    width, height = columns * cell, rows * cell
    shapes = [
        f'<rect x="{first * cell:g}" y="{row * cell:g}" width="{(last - first) * cell:g}" '
        f'height="{cell:g}" fill="{_COLOURS[sequence % len(_COLOURS)]}"/>'
        for row, first, last, sequence in _runs(drawn.sequence)
    ]
    lengths = f"{drawn.num_queries} queries ↓, {drawn.num_keys} keys →"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="12" '
        f'width="{max(width, 8 * len(drawn.title)):g}" height="{height + 38:g}">'
        f'<text y="14" font-weight="bold">{escape(drawn.title)}</text>'
        f'<text y="30">{lengths}</text>'
        f'<g transform="translate(0 38)"><rect width="{width:g}" height="{height:g}" '
        f'fill="{_UNSEEN}"/>{"".join(shapes)}</g></svg>'
    )


def plot(drawn: Picture, ax: Axes | None) -> Axes:
    """Draw the picture on `ax`, or on new axes.

    Raises: ImportError if matplotlib is not installed.
    """
    try:
        colors: Any = importlib.import_module("matplotlib.colors")
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise ImportError("plot: needs matplotlib; install it, or show the mask's SVG") from error
    axes: Any = pyplot.subplots()[1] if ax is None else ax
    colouring = colors.ListedColormap([_UNSEEN, *_COLOURS])
    seen = drawn.sequence >= 0
    axes.imshow(
        (drawn.sequence % len(_COLOURS) + 1).where(seen, 0).tolist(),
        cmap=colouring,
        vmin=-0.5,
        vmax=len(_COLOURS) + 0.5,
        interpolation="nearest",
        aspect="auto",
        extent=(-0.5, drawn.num_keys - 0.5, drawn.num_queries - 0.5, -0.5),
    )
    axes.set(title=drawn.title, xlabel="key", ylabel="query")
    return axes


def _shape_of(spec: MaskSpec) -> tuple[int, int]:
    """Return the lengths of the bias, if there is one, where they are not 1."""
    if spec.bias is None or spec.bias.dim() < 2:
        return _DEFAULT_SHAPE
    num_queries, num_keys = spec.bias.shape[-2:]
    return num_queries if num_queries > 1 else num_keys, num_keys if num_keys > 1 else num_queries


def _sample(count: int) -> Tensor:
    """Return up to `_MOST_CELLS` of the numbers below `count`, evenly spread."""
    cells = min(count, _MOST_CELLS)
    return (torch.arange(cells) * count + count // 2) // max(cells, 1)


def _shown_by_bias(bias: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    first = bias.detach().cpu().reshape(-1, *bias.shape[-2:])[0]
    rows = queries if first.shape[0] > 1 else torch.zeros_like(queries)
    columns = keys if first.shape[1] > 1 else torch.zeros_like(keys)
    at = first[rows[:, None], columns]
    return at if at.dtype == torch.bool else at != float("-inf")


def _runs(sequence: Tensor) -> Iterator[tuple[int, int, int, int]]:
    """Yield row, first and last column, and sequence, of each stretch of one colour."""
    for row, cells in enumerate(sequence.tolist()):
        first = 0
        for column in range(1, len(cells) + 1):
            if column == len(cells) or cells[column] != cells[first]:
                if cells[first] >= 0:
                    yield row, first, column, cells[first]
                first = column
