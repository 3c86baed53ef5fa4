"""What benchmark programs do: measure the ceilings, then check and time every case, and report."""

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from attn_ops.benchmark.case import Case
from attn_ops.benchmark.ceilings import Ceilings, measure_ceilings
from attn_ops.benchmark.chart import draw
from attn_ops.benchmark.machine import describe_machine
from attn_ops.benchmark.measure import time_in_turns
from attn_ops.benchmark.report import ceilings_line, markdown, terminal_table, to_json
from attn_ops.benchmark.results import Result


def run(
    cases: Sequence[Case],
    package: str,
    description: str,
    arguments: Sequence[str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Run the benchmark of `package` over its cases; return 1 if any result was wrong.

    arguments: of the command line. clock: see `time_in_turns`.
    """
    options = _parse(package, description, arguments)
    cases = [case for case in cases if options.only.search(case.name)]
    if not cases:
        raise SystemExit(
            f"benchmark: expected --only to match a case, got {options.only.pattern!r}"
        )
    if options.quick:
        cases = [case.shrunk() for case in cases]
    machine = describe_machine()
    slice_seconds, case_seconds = (0.02, 0.05) if options.quick else (0.2, 2.0)
    ceilings = [measure_ceilings(count, slice_seconds) for count in options.threads]
    console = _console(stderr=options.json)
    for line in (str(machine), *map(ceilings_line, ceilings)):
        console.print(line)

    results = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=case.name)
            results += _measure(case, ceilings, case_seconds, clock)
            progress.advance(task)

    console.print(terminal_table(results))
    as_json = to_json(machine, ceilings, results)
    if options.json:
        sys.stdout.write(as_json + "\n")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "benchmark.json").write_text(as_json)
    (options.out / "benchmark.md").write_text(markdown(machine, ceilings, results))
    chart = draw(options.out / "benchmark.png", machine, results)
    console.print(f"written to {options.out}/benchmark.json, .md{' and .png' if chart else ''}")
    return 0 if all(result.error.is_small for result in results) else 1


def _console(*, stderr: bool) -> Console:
    """Return a console wide enough for the table where there is no terminal to fit."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, width=130)


def _measure(
    case: Case, ceilings: Sequence[Ceilings], seconds: float, clock: Callable[[], float]
) -> Iterator[Result]:
    """Check the case once, then time it on each number of threads."""
    torch.set_num_threads(max(ceiling.threads for ceiling in ceilings))
    contest = case.prepare()
    for ceiling in ceilings[:1] if case.compares_threads else ceilings:
        timings, peaks = (None, None), None
        if contest.error.is_small:
            contenders = (contest.ours, contest.baseline)
            timings = time_in_turns(contenders, ceiling.threads, seconds, clock)
            if ceiling.threads == 1 and contest.measure_peaks is not None:
                peaks = contest.measure_peaks()
        yield Result(case, ceiling.threads, ceiling, contest.error, *timings, peaks=peaks)


def regular_expression(text: str) -> re.Pattern[str]:
    """Return the expression that an argument of the command line is.

    Raises: argparse.ArgumentTypeError if it is none.
    """
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(
            f"expected a regular expression, got {text!r} ({error}); escape what is meant literally"
        ) from error


def _parse(package: str, description: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {package}.benchmark", description=description)
    parser.add_argument("--quick", action="store_true", help="small cases, to see that all runs")
    parser.add_argument(
        "--only",
        type=regular_expression,
        default="",
        metavar="REGEX",
        help="cases whose names match",
    )
    parser.add_argument(
        "--threads",
        type=lambda text: [int(count) for count in text.split(",")],
        default=sorted({1, torch.get_num_threads()}),
        metavar="N,N",
        help="numbers of threads (default: 1 and all)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("attn-benchmark" if package == "attn_ops" else f"{package}-benchmark"),
        help="folder for the JSON, the Markdown table and the chart (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the JSON, and all else to stderr"
    )
    return parser.parse_args(arguments)
