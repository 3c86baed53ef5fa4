"""What ptxas says of the kernels: no spills in the plain ones, registers and stack as recorded.

A stack holds arrays that are indexed while the kernel runs; sums must not be among them. The files
compiled are decoding's and those of the commonest width.
`PYTHONPATH=tests python -m cuda_build.test_ptxas_report FOLDER` prints what `resources.txt` should
hold.
"""

import re
import shutil
import sys
from pathlib import Path

import pytest

from cuda_build.nvcc import compile_source, cutlass, readable_name

RECORD = Path(__file__).with_name("resources.txt")
FILES = (
    "decode/decode.cu",
    "sm80/backward_128.cu",
    "sm80/forward_128.cu",
    "sm80/one_pass_128.cu",
    "sm80/one_pass_64.cu",
)
ARCHITECTURES = ("80", "90")
ALLOWED_MORE = 8
"""Registers that another release of nvcc may use without this failing."""

REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>sm_\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def resources(out: Path) -> dict[str, tuple[int, int, int]]:
    """Return registers, spilled bytes and bytes of stack of each kernel, by a readable name."""
    found = {}
    for file in FILES:
        report = compile_source(file, out / Path(file).with_suffix(".o").name, ARCHITECTURES, "-c")
        assert "C75" not in report, "ptxas serialised something"
        for kernel in REPORT.finditer(report):
            name = readable_name(kernel["name"])
            if name is None:  # the merge
                continue
            spilled = int(kernel["stores"]) + int(kernel["loads"])
            found[f"{name} {kernel['architecture']}"] = (
                int(kernel["registers"]),
                spilled,
                int(kernel["stack"]),
            )
    return found


def as_table(found: dict[str, tuple[int, int, int]]) -> str:
    """Return one line for each kernel: its name, registers, spilled bytes and bytes of stack."""
    return "".join(f"{name} {r} {p} {s}\n" for name, (r, p, s) in sorted(found.items()))


def recorded() -> dict[str, tuple[int, int, int]]:
    """Return what `resources.txt` holds."""
    rows = (line.rsplit(maxsplit=3) for line in RECORD.read_text().splitlines())
    return {name: (int(r), int(p), int(s)) for name, r, p, s in rows}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.skipif(cutlass() is None, reason="no CUTLASS headers: set ATTN_CUTLASS_DIR")
def test_kernels_use_what_is_recorded(tmp_path):
    found, expected = resources(tmp_path), recorded()
    assert found.keys() == expected.keys()
    for name, (registers, spilled, stack) in found.items():
        assert spilled == 0 or " plain " not in name, f"{name} spills {spilled} bytes"
        assert registers <= expected[name][0] + ALLOWED_MORE, f"{name}: {registers} registers"
        assert spilled <= expected[name][1], f"{name}: {spilled} bytes spilled"
        assert stack <= expected[name][2], f"{name}: {stack} bytes of stack"


if __name__ == "__main__":
    sys.stdout.write(as_table(resources(Path(sys.argv[1]))))
