"""Draws how near ours and the baselines come to the ceiling, one panel per number of threads."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from attn_ops.benchmark.machine import Machine
from attn_ops.benchmark.results import Result

_OURS = "#1b6ca8"
_BASELINE = "#c9c3b8"
_BAR = 0.38  # of the distance between two cases


def draw(path: Path, machine: Machine, results: Sequence[Result]) -> bool:
    """Write a PNG of the results that have a ceiling; return whether there are any."""
    shown = [result for result in results if result.share is not None]
    counts = sorted({result.threads for result in shown})
    if not shown:
        return False
    rows = max(sum(result.threads == count for result in shown) for count in counts)
    figure = Figure(figsize=(3.5 + 4 * len(counts), 1.6 + 0.42 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for panel, count in zip(axes, counts, strict=True):
        _draw_panel(panel, [result for result in shown if result.threads == count])
        panel.set_title(f"{count} thread" if count == 1 else f"{count} threads")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(
        f"Share of the machine's ceiling, and times as fast as the baseline\n{machine}",
        fontsize="small",
    )
    figure.savefig(path, dpi=150)
    return True


def _draw_panel(panel: Axes, results: Sequence[Result]) -> None:
    places = range(len(results))
    shares = [100 * (result.share or 0.0) for result in results]
    baseline = [100 * (result.baseline_share or 0.0) for result in results]
    panel.barh([place - _BAR / 2 for place in places], shares, _BAR, color=_OURS, label="attn_ops")
    panel.barh(
        [place + _BAR / 2 for place in places], baseline, _BAR, color=_BASELINE, label="baseline"
    )
    for place, share, result in zip(places, shares, results, strict=True):
        panel.annotate(
            f"{result.speedup:.1f} x",
            (share, place - _BAR / 2),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize="x-small",
        )
    panel.set_yticks(list(places), [result.case.name for result in results], fontsize="small")
    panel.set_ylim(len(results) - 0.4, -0.6)
    panel.set_xlim(0, 115)
    panel.set_xticks(range(0, 101, 25))
    panel.set_xlabel("percent")
    panel.spines[["top", "right"]].set_visible(False)
