"""The results as tables for the terminal, as Markdown, and as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from attn_modules.benchmark.contests import Outcome
    from attn_modules.benchmark.growth import Cost, Growth
    from attn_ops.benchmark.machine import Machine
    from attn_ops.benchmark.measure import Timing

_STYLES = {True: "green", False: "red", None: ""}
_CONTEST_COLUMNS = ("mechanism", "rows", "ours", "other", "which is", "speedup", "aim")


def growth_table(growths: Sequence[Growth]) -> Table:
    """Return times, memory and exponents for rich to print: green where the aim is met."""
    table = _table(_growth_columns(growths))
    for growth in growths:
        table.add_row(*_growth_cells(growth), style=_STYLES[growth.meets_aim])
    return table


def contest_table(outcomes: Sequence[Outcome]) -> Table:
    """Return the contests for rich to print."""
    table = _table(_CONTEST_COLUMNS)
    for outcome in outcomes:
        table.add_row(*_contest_cells(outcome), style=_STYLES[outcome.meets_aim])
    return table


def markdown(machine: Machine, growths: Sequence[Growth], outcomes: Sequence[Outcome]) -> str:
    """Return everything as Markdown."""
    lines = [f"{machine}."]
    if growths:
        lines += ["", *_markdown_table(_growth_columns(growths), map(_growth_cells, growths))]
    if outcomes:
        lines += ["", *_markdown_table(_CONTEST_COLUMNS, map(_contest_cells, outcomes))]
    return "\n".join(lines) + "\n"


def to_json(machine: Machine, growths: Sequence[Growth], outcomes: Sequence[Outcome]) -> str:
    """Return everything as JSON; times in seconds, memory in bytes."""
    return json.dumps(
        {
            "machine": asdict(machine),
            "growths": [_growth_json(growth) for growth in growths],
            "contests": [_contest_json(outcome) for outcome in outcomes],
        },
        indent=2,
    )


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column(columns[0], min_width=24)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _growth_columns(growths: Sequence[Growth]) -> list[str]:
    rows = [f"M {cost.rows}" for cost in growths[0].costs]
    return ["mechanism", *rows, "forward M^", "backward M^", "memory M^", "aim"]


def _growth_cells(growth: Growth) -> list[str]:
    exponents = growth.forward_exponent, growth.backward_exponent, growth.memory_exponent
    powers = ["" if x is None or math.isnan(x) else f"{x:.2f}" for x in exponents]
    return [growth.case.title, *map(_cost, growth.costs), *powers, _growth_aim(growth)]


def _cost(cost: Cost) -> str:
    times = f"{_time(cost.forward)} + {_time(cost.backward)}"
    return times if cost.extra_bytes is None else f"{times}, {_size(cost.extra_bytes)}"


def _growth_aim(growth: Growth) -> str:
    if growth.meets_aim is None:
        return ""
    return f"{growth.case.aim:.1f}: {_word(growth.meets_aim)}"


def _word(is_met: bool | None) -> str:
    return "met" if is_met else "missed"


def _contest_cells(outcome: Outcome) -> list[str]:
    contest, error = outcome.contest, outcome.error
    aim = "" if contest.aim is None else f"{contest.aim:.2f}: {_word(outcome.meets_aim)}"
    if outcome.ours is None or outcome.theirs is None:
        wrong = f"WRONG: off by {error.largest:.1e}, allowed {error.allowed:.1e}"
        return [contest.title, str(outcome.rows), wrong, "", contest.other, "", ""]
    return [
        contest.title,
        str(outcome.rows),
        _time(outcome.ours),
        _time(outcome.theirs),
        contest.other,
        f"{outcome.speedup:.2f}",
        aim,
    ]


def _time(timing: Timing) -> str:
    if timing.median >= 1:
        return f"{timing.median:.3g} s"
    return f"{timing.median * 1e3:.3g} ms"


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def _markdown_table(columns: Sequence[str], rows: Iterable[list[str]]) -> list[str]:
    cells = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return [f"| {' | '.join(row)} |" for row in cells]


def _growth_json(growth: Growth) -> dict[str, Any]:
    return {
        "name": growth.case.title,
        "costs": [asdict(cost) for cost in growth.costs],
        "forward_exponent": growth.forward_exponent,
        "backward_exponent": growth.backward_exponent,
        "memory_exponent": growth.memory_exponent,
        "aim": growth.case.aim,
        "meets_aim": growth.meets_aim,
    }


def _contest_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.contest.title,
        "other": outcome.contest.other,
        "rows": outcome.rows,
        "error": asdict(outcome.error),
        "ours": None if outcome.ours is None else asdict(outcome.ours),
        "theirs": None if outcome.theirs is None else asdict(outcome.theirs),
        "speedup": outcome.speedup,
        "aim": outcome.contest.aim,
        "meets_aim": outcome.meets_aim,
    }
