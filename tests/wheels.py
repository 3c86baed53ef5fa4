"""Builds the wheel and installs it without torch, for the tests that need it so."""

import fcntl
import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
BUILD_TIME = "1600000000"
"""Seconds since 1970 that every archive carries, so that equal sources give equal wheels."""

WHEEL_SOURCES = ("CMakeLists.txt", "LICENSE", "core", "bindings", "packages/attn-ops")


@dataclass(frozen=True)
class Installation:
    """A virtual environment that holds NumPy and the wheel of attn-ops, and no torch."""

    python: Path
    wheel: Path

    def run(self, *arguments: str, cwd: Path | None = None) -> str:
        """Run the environment's interpreter and return what it printed."""
        return run([str(self.python), *arguments], cwd=cwd or self.python.parent)


def run(command: list[str], *, cwd: Path, **environment: str) -> str:
    """Run `command` and return what it printed; fail the test with that if it fails.

    The tools beside this interpreter (CMake, Ninja) come first; PYTHONPATH is unset.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    inherited["ATTN_CUDA"] = "0"  # its kernels take minutes to compile, and have tests of their own
    inherited["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=cwd,
        env=inherited | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)} exited {done.returncode}:\n{done.stdout[-6000:]}")
    return done.stdout


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep the other processes of `pytest -n` from building in `folder` meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def source_files() -> Iterator[Path]:
    for source in WHEEL_SOURCES:
        path = REPOSITORY / source
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (file for file in files if file.is_file() and "__pycache__" not in file.parts)


def source_key() -> str:
    digest = hashlib.sha256(sys.version.encode())
    for file in source_files():
        digest.update(str(file.relative_to(REPOSITORY)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def build_wheel() -> Path:
    """Return the wheel, built in isolation from the source distribution beside it.

    Kept in build/ until a source changes: it takes about a minute.
    """
    folder = REPOSITORY / "build" / "wheel" / source_key()
    with locked(folder):
        if not list(folder.glob("*.whl")):
            folder.mkdir(exist_ok=True)
            finder = str(REPOSITORY / "bindings" / "find_torch_include.py")
            run(
                [sys.executable, "-m", "build", "--outdir", str(folder), "packages/attn-ops"],
                cwd=REPOSITORY,
                ATTN_TORCH_INCLUDE=run([sys.executable, finder], cwd=REPOSITORY).strip(),
                SOURCE_DATE_EPOCH=BUILD_TIME,
                TMPDIR=str(folder),  # where ./dev's ccache knows sources again
            )
    (built,) = folder.glob("*.whl")
    return built


def install_wheel(wheel: Path, folder: Path) -> Installation:
    """Return a new environment in `folder` that holds the wheel, NumPy, ml_dtypes and pytest."""
    venv.create(folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    packages = [f"{wheel}[numpy]", "ml_dtypes", "pytest"]
    run([*pip, "install", "--quiet", "--no-compile", *packages], cwd=folder)
    return Installation(python, wheel)
