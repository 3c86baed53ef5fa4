"""Compiles one source of the CUDA kernels as the build does, and reads the names of its kernels."""

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]

_KERNEL = re.compile(
    r"\d(?P<kernel>[a-z_]+_kernel)I.*?(?P<element>Half|BFloat16|f)E?"
    r"Li(?P<width>\d+)E(?:Lb(?P<extended>[01])E)?"
)


def cutlass() -> str | None:
    """Return the folder of CUTLASS' headers: the one given, or where ./dev puts them."""
    downloaded = ROOT / "build/cutlass/cutlass_library/source/include"
    given = os.environ.get("ATTN_CUTLASS_DIR")
    return given or (str(downloaded) if downloaded.is_dir() else None)


def compile_source(file: str, out: Path, architectures: Iterable[str], kind: str) -> str:
    """Return what ptxas says of `file`, of core/src/cuda; `kind` -c or -cubin is what it leaves."""
    headers = cutlass()
    assert headers is not None, "no CUTLASS headers: set ATTN_CUTLASS_DIR"
    targets = [f"-gencode=arch=compute_80,code=sm_{number}" for number in architectures]
    command = [
        *("nvcc", "-std=c++20", "-O3", "-DNDEBUG", "--expt-relaxed-constexpr", "-Xptxas", "-v"),
        *(*targets, "-I", ROOT / "core/src", "-I", ROOT / "core/include", "-isystem", headers),
        *(kind, ROOT / "core/src/cuda" / file, "-o", out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def readable_name(mangled: str) -> str | None:
    """Return a kernel's name, element, width and variant; None if it has no element of its own."""
    part = _KERNEL.search(mangled)
    if part is None:
        return None
    element = {"f": "float32"}.get(part["element"], part["element"])
    # Decoding knows the whole mask in one variant.
    is_extended = part["extended"] == "1" or part["kernel"] == "decode_kernel"
    return f"{part['kernel']} {element} {part['width']} {'extended' if is_extended else 'plain'}"
