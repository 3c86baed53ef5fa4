"""What ptxas says of the kernels: no spills in the plain ones, registers and stack as recorded.

A stack holds arrays that are indexed while the kernel runs; sums must not be among them. The files
compiled are decoding's and those of the commonest width.
`python tests/cuda_build/test_ptxas_report.py FOLDER` prints what `resources.txt` should hold.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
KERNEL = re.compile(
    r"\d(?P<kernel>[a-z_]+_kernel)I.*?(?P<element>Half|BFloat16|f)E?"
    r"Li(?P<width>\d+)E(?:Lb(?P<extended>[01])E)?"
)


def cutlass() -> str | None:
    """Return the folder of CUTLASS' headers: the one given, or where ./dev puts them."""
    downloaded = ROOT / "build/cutlass/cutlass_library/source/include"
    given = os.environ.get("ATTN_CUTLASS_DIR")
    return given or (str(downloaded) if downloaded.is_dir() else None)


def compile_and_report(file: str, out: Path, headers: str) -> str:
    """Return what ptxas says of one file, for each of the architectures."""
    targets = [f"-gencode=arch=compute_80,code=sm_{number}" for number in ARCHITECTURES]
    command = [
        *("nvcc", "-std=c++20", "-O3", "-DNDEBUG", "--expt-relaxed-constexpr", "-Xptxas", "-v"),
        *(*targets, "-I", ROOT / "core/src", "-I", ROOT / "core/include", "-isystem", headers),
        *("-c", ROOT / "core/src/cuda" / file, "-o", out / Path(file).with_suffix(".o").name),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def resources(out: Path) -> dict[str, tuple[int, int, int]]:
    """Return registers, spilled bytes and bytes of stack of each kernel, by a readable name."""
    headers = cutlass()
    assert headers is not None
    found = {}
    for file in FILES:
        report = compile_and_report(file, out, headers)
        assert "C75" not in report, "ptxas serialised something"
        for kernel in REPORT.finditer(report):
            part = KERNEL.search(kernel["name"])
            if part is None:  # the merge, which has no element of its own
                continue
            element = {"f": "float32"}.get(part["element"], part["element"])
            # Decoding knows the whole mask in one variant.
            is_extended = part["extended"] == "1" or part["kernel"] == "decode_kernel"
            variant = "extended" if is_extended else "plain"
            name = f"{part['kernel']} {element} {part['width']} {variant} {kernel['architecture']}"
            spilled = int(kernel["stores"]) + int(kernel["loads"])
            found[name] = (int(kernel["registers"]), spilled, int(kernel["stack"]))
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
