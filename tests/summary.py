"""Add up JUnit reports into the closing lines of `./dev test`; exit 1 unless all of them passed."""

import argparse
import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def count(report: Path) -> tuple[int, int, int]:
    """Return how many tests of one report passed, failed and were skipped."""
    if not report.exists():
        return 0, 1, 0
    passed = failed = skipped = 0
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - our own file
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def main() -> None:
    """Print one line per report and the sum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("reports", type=Path, nargs="+")
    arguments = parser.parse_args()

    counts = [count(report) for report in arguments.reports]
    print()
    for report, (passed, failed, skipped) in zip(arguments.reports, counts, strict=True):
        note = "" if report.exists() else "  (did not run to its end)"
        print(f"{report.stem:>10}  {passed:5} passed {failed:4} failed {skipped:4} skipped{note}")
    passed, failed, skipped = (sum(column) for column in zip(*counts, strict=True))
    print(f"all tests took {arguments.seconds} s")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(failed > 0 or passed == 0)


if __name__ == "__main__":
    main()
