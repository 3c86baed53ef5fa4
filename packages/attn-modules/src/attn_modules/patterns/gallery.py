"""A picture of every pattern, as one SVG image: `python -m attn_modules.patterns` prints it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from attn_modules import patterns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attn_ops.fmha.attn_bias import BlockSparseMask

_PANEL: Final = 128
"""The side of a pattern's square, in pixels."""
_ACROSS: Final = 5
_LEFT, _TOP, _APART, _CAPTION = 16, 16, 24, 34
_SHADES: Final = 8
_UNSEEN, _SEEN = "#eeeeee", "#4477aa"


def pictures() -> dict[str, Tensor]:
    """Return a small example of each pattern by what makes it: [N, N], 0 unseen to 1 seen."""
    tokens = torch.arange(32)
    generator = torch.Generator().manual_seed(0)
    gaussian = patterns.local_2d_gaussian_distribution(6, 6, sigma=2)
    drawn = patterns.random_pattern_from_probability_matrix(gaussian, 200, generator=generator)
    return {
        "local_1d_pattern(32, 7)": patterns.local_1d_pattern(32, 7),
        "dilated_1d_pattern(32, 7, 2)": patterns.dilated_1d_pattern(32, 7, 2),
        "causal_1d_pattern(32)": patterns.causal_1d_pattern(32),
        "global_token_pattern(mask)": patterns.global_token_pattern(tokens % 11 == 4),
        "random_pattern(32, 0.8)": patterns.random_pattern(32, 0.8, generator=generator),
        "local_2d_pattern(6, 6, 2)": patterns.local_2d_pattern(6, 6, 2),
        "local_2d_gaussian_distribution": gaussian,
        "random_pattern_from_probability…": drawn,
        "axial_2d_pattern(6, 6)": patterns.axial_2d_pattern(6, 6),
        "dilated_2d_pattern(6, 6, 2)": patterns.dilated_2d_pattern(6, 6, 2),
        "horizontal_axial_2d_distance < 2": patterns.horizontal_axial_2d_distance(6, 6) < 2,
        "vertical_axial_2d_distance < 2": patterns.vertical_axial_2d_distance(6, 6) < 2,
        "swin_attention_pattern(6, 6, 3)": patterns.swin_attention_pattern(6, 6, 3),
        "swin_attention_pattern(6, 6, 3, 1)": patterns.swin_attention_pattern(6, 6, 3, 1),
        "alibi_pattern(1.5, …), head 3 of 8": patterns.alibi_pattern(1.5, (8, 32, 32))[2],
        "exp(alibi_bias), head 2 of 8": patterns.alibi_bias(8, 32)[1].exp(),
        "quick_fixed_layout": patterns.quick_fixed_layout(1, 2, 32)[0],
        "quick_variable_layout": patterns.quick_variable_layout(1, 2, 32)[0],
        "quick_bigbird_layout": patterns.quick_bigbird_layout(1, 2, 32, seed=0)[0],
        "quick_bslongformer_layout": patterns.quick_bslongformer_layout(1, 2, 32)[0],
        "local_1d_block_mask": _drawn(patterns.local_1d_block_mask(32, 7, 4)),
        "causal_1d_block_mask": _drawn(patterns.causal_1d_block_mask(32, 4)),
        "random_block_mask": _drawn(patterns.random_block_mask(32, 2, 4)),
        "big_bird_block_mask": _drawn(patterns.big_bird_block_mask(16, 2, seed=1)),
        "big_bird_block_mask, causal": _drawn(
            patterns.big_bird_block_mask(16, 2, causal=True, seed=1)
        ),
    }


def svg() -> str:
    """Return all `pictures` in rows."""
    drawn = pictures()
    down = -(-len(drawn) // _ACROSS)
    width = 2 * _LEFT + _ACROSS * (_PANEL + _APART) - _APART
    height = 2 * _TOP + down * (_PANEL + _CAPTION)
    panels = []
    for place, (caption, pattern) in enumerate(drawn.items()):
        x = _LEFT + place % _ACROSS * (_PANEL + _APART)
        y = _TOP + place // _ACROSS * (_PANEL + _CAPTION)
        panels.append(f'<g transform="translate({x} {y})">{_panel(caption, pattern)}</g>\n')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="8">\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
        f'<text x="{_LEFT}" y="11">Rows are queries, columns are keys; blue is seen.</text>\n'
        f"{''.join(panels)}</svg>\n"
    )


def _drawn(mask: BlockSparseMask) -> Tensor:
    return mask.materialize((32, 32)) == 0


def _panel(caption: str, pattern: Tensor) -> str:
    size = _PANEL / len(pattern)
    shade = (pattern.double().clamp(0, 1) * _SHADES).round().int()
    paths = []
    for level in shade.unique().tolist():
        runs = "".join(
            f"M{first} {row}h{last - first}v1H{first}z" for row, first, last in _runs(shade, level)
        )
        opacity = "" if level == _SHADES else f' opacity="{level / _SHADES:g}"'
        paths += [f'<path d="{runs}"{opacity}/>'] if level > 0 else []
    return (
        f'<rect width="{_PANEL}" height="{_PANEL}" fill="{_UNSEEN}"/>'
        f'<g fill="{_SEEN}" transform="scale({size:.6g})">{"".join(paths)}</g>'
        f'<text y="{_PANEL + 11}">{escape(caption)}</text>'
    )


def _runs(shade: Tensor, level: int) -> Iterator[tuple[int, int, int]]:
    """Yield row, first column and the one after the last, of each stretch of one shade."""
    for row, cells in enumerate((shade == level).int().tolist()):
        edges = torch.tensor([0, *cells, 0]).diff()
        firsts, lasts = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            yield row, first, last
