"""The results as a table for the terminal, as Markdown, and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.table import Table

from attn_ops.benchmark.case import Peaks, word
from attn_ops.benchmark.ceilings import Ceilings
from attn_ops.benchmark.machine import Machine
from attn_ops.benchmark.measure import Timing
from attn_ops.benchmark.results import Result

_COLUMNS = (
    "case",
    "threads",
    "ours",
    "baseline",
    "which is",
    "speedup",
    "rate",
    "of ceiling",
    "memory",
    "target",
)
_STYLES = {True: "green", False: "red", None: ""}


def ceilings_line(ceilings: Ceilings) -> str:
    """Return the machine's limits on one line."""
    bfloat16 = (
        f"{ceilings.bfloat16 / 1e9:.0f} GFLOP/s"
        if ceilings.bfloat16
        else "no unit, so float32's counts"
    )
    return (
        f"Ceilings on {_threads(ceilings.threads)}: float32 {ceilings.float32 / 1e9:.0f} GFLOP/s, "
        f"bfloat16 {bfloat16}, memory read {ceilings.read / 1e9:.1f} GB/s"
    )


def terminal_table(results: Sequence[Result]) -> Table:
    """Return the results for rich to print: green where the target is met, red where it is not."""
    table = Table(box=SIMPLE_HEAD)
    columns, *rows = _rows(results)
    table.add_column(columns[0], min_width=20)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    for row, result in zip(rows, results, strict=True):
        table.add_row(*row, style=_STYLES[result.meets_target])
    return table


def markdown(machine: Machine, ceilings: Sequence[Ceilings], results: Sequence[Result]) -> str:
    """Return everything as Markdown."""
    lines = [
        f"{machine}.",
        *(f"{ceilings_line(ceiling)}." for ceiling in ceilings),
        "",
    ]
    columns, *rows = _rows(results)
    lines += [_markdown_row(columns), _markdown_row(["---", *["---:"] * (len(columns) - 1)])]
    lines += map(_markdown_row, rows)
    return "\n".join(lines) + "\n"


def to_json(machine: Machine, ceilings: Sequence[Ceilings], results: Sequence[Result]) -> str:
    """Return everything as JSON; times in seconds, rates in FLOP/s or bytes/s."""
    return json.dumps(
        {
            "machine": asdict(machine),
            "ceilings": [asdict(ceiling) for ceiling in ceilings],
            "results": [_json_row(result) for result in results],
        },
        indent=2,
    )


def _rows(results: Sequence[Result]) -> list[list[str]]:
    """Return the columns' names and the results; memory only where it was measured."""
    rows = [list(_COLUMNS), *map(_cells, results)]
    if all(result.peaks is None for result in results):
        memory = _COLUMNS.index("memory")
        rows = [row[:memory] + row[memory + 1 :] for row in rows]
    return rows


def _cells(result: Result) -> list[str]:
    case = result.case
    if result.ours is None or result.baseline is None:
        wrong = f"WRONG: off by {result.error.largest:.1e}, allowed {result.error.allowed:.1e}"
        return [case.name, str(result.threads), wrong, *[""] * (len(_COLUMNS) - 3)]
    unit = "GB/s" if case.limit == "read" else "GFLOP/s"
    return [
        case.name,
        "2 and 1" if case.compares_threads else str(result.threads),
        _time(result.ours),
        _time(result.baseline),
        case.baseline,
        f"{result.speedup:.2f}",
        "" if result.rate is None else f"{result.rate / 1e9:.1f} {unit}",
        "" if result.share is None else f"{result.share:.0%}",
        "" if result.peaks is None else _memory(result.peaks),
        _target(result),
    ]


def _target(result: Result) -> str:
    if result.meets_target is None:
        return ""
    target = result.case.target
    aims = [] if target.speedup is None else [f"{target.speedup:.2f}"]
    aims += [] if target.share is None else [f"{target.share:.0%}"]
    aims += [] if target.memory is None else [f"memory {target.memory:.0%}"]
    return f"{', '.join(aims)}: {'met' if result.meets_target else 'missed'}"


def _memory(peaks: Peaks) -> str:
    return f"{peaks.ours / 2**20:.1f} MiB, {peaks.share:.0%}"


def _time(timing: Timing) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if timing.median * scale >= 1:
            return f"{timing.median * scale:.3g} {unit}"
    return f"{timing.median * 1e6:.3g} us"


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _json_row(result: Result) -> dict[str, object]:
    return {
        "name": result.case.name,
        "case": asdict(result.case) | {"dtype": word(result.case.dtype)},
        "baseline_is": result.case.baseline,
        "threads": result.threads,
        "ours": None if result.ours is None else asdict(result.ours),
        "baseline": None if result.baseline is None else asdict(result.baseline),
        "speedup": result.speedup,
        "rate": result.rate,
        "share_of_ceiling": result.share,
        "baseline_share_of_ceiling": result.baseline_share,
        "peak_bytes": None if result.peaks is None else asdict(result.peaks),
        "meets_target": result.meets_target,
        "error": result.error.largest,
        "error_allowed": result.error.allowed,
    }
