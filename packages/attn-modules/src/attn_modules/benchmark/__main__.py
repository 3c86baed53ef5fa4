"""The command line: measure how mechanisms grow, hold the contests, and report."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from attn_ops.benchmark import require_extra

require_extra("attn-modules")

import torch  # noqa: E402  only now
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402

from attn_modules.benchmark.cases import CONTESTS, GROWTH_CASES  # noqa: E402
from attn_modules.benchmark.growth import Cost, Growth, GrowthCase, time_case  # noqa: E402
from attn_modules.benchmark.memory import measure_extra_bytes  # noqa: E402
from attn_modules.benchmark.report import contest_table, growth_table, markdown, to_json  # noqa: E402
from attn_ops.benchmark.command import regular_expression  # noqa: E402
from attn_ops.benchmark.machine import describe_machine  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attn_modules.benchmark.contests import Outcome

_ROWS = (1024, 4096, 16384)
_QUICK_ROWS = (256, 1024)  # squares, as images are, and multiples of the blocks of plain torch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 if any result was wrong."""
    options = _parse(arguments)
    cases = [case for case in GROWTH_CASES if options.only.search(case.title)]
    contests = [
        contest
        for contest in CONTESTS
        if options.only.search(f"{contest.title} against {contest.other}")
    ]
    if not cases and not contests:
        raise SystemExit(
            f"benchmark: expected --only to match a mechanism, got {options.only.pattern!r}"
        )
    if options.quick:
        cases = [replace(case, aim=None) for case in cases]
        contests = [replace(contest, aim=None) for contest in contests]
    machine = describe_machine()
    torch.set_num_threads(options.threads)
    rows, seconds = (_QUICK_ROWS, 0.02) if options.quick else (_ROWS, 1.0)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=180)
    console.print(str(machine))

    growths, outcomes = [], []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(cases) + len(contests))
        for case in cases:
            progress.update(task, description=case.title)
            growths.append(_measure(case, rows, options.threads, seconds))
            progress.advance(task)
        for contest in contests:
            progress.update(task, description=f"{contest.title} against {contest.other}")
            outcomes.append(contest.hold(rows[-1], options.threads, seconds))
            progress.advance(task)

    _print_tables(console, growths, outcomes)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "benchmark.json").write_text(to_json(machine, growths, outcomes) + "\n")
    (options.out / "benchmark.md").write_text(markdown(machine, growths, outcomes))
    console.print(f"written to {options.out}/benchmark.json and .md")
    return 0 if all(outcome.error.is_small for outcome in outcomes) else 1


def _print_tables(console: Console, growths: list[Growth], outcomes: list[Outcome]) -> None:
    if growths:
        console.print("Forward + backward, and memory beyond inputs, result and gradients:")
        console.print(growth_table(growths))
    if outcomes:
        console.print("Forward; causal favor is to reach one of its two aims:")
        console.print(contest_table(outcomes))


def _measure(case: GrowthCase, rows: Sequence[int], threads: int, seconds: float) -> Growth:
    sizes = measure_extra_bytes(case, rows)
    costs = [
        Cost(count, *time_case(case, count, threads, seconds), size)
        for count, size in zip(rows, sizes, strict=True)
    ]
    return Growth(case, tuple(costs))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m attn_modules.benchmark",
        description="Measure how time and memory of the mechanisms grow with the number of rows.",
    )
    parser.add_argument("--quick", action="store_true", help="few rows, to see that all runs")
    parser.add_argument(
        "--only",
        type=regular_expression,
        default="",
        metavar="REGEX",
        help="mechanisms whose names match",
    )
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("attn-modules-benchmark"),
        help="folder for the JSON and the Markdown tables (default: %(default)s)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
