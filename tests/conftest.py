"""Fixtures of every test. This file imports no torch: some tests run where there is none."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from warm_python import WarmPython
from wheels import REPOSITORY, Installation, build_wheel, install_wheel, locked

# Torch's threads spin while they wait for each other: beside other programs, 30 times as long as
# these tests compute. The OpenMP runtime reads both once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if WORKERS := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # each has its part of the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // int(WORKERS), 1)))
# Or torch.compile begins with programs that show whether the compiler knows this CPU's vectors.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run first what takes long, so that no worker is left with it when the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Let one worker at a time import torch and the tests: what the first compiles, others load."""
    with locked(REPOSITORY / "build" / "collection"):
        return (yield)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from searching torch and all the tests, over and over."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 100)  # torch's compiler keeps millions of objects


@pytest.fixture(scope="session")
def wheel() -> Path:
    """Return the wheel of this tree; the source distribution it was built from lies beside it."""
    return build_wheel()


@pytest.fixture(scope="session")
def installed_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Return an environment without torch that holds the wheel."""
    return install_wheel(wheel, tmp_path_factory.mktemp("installed_wheel"))


@pytest.fixture(scope="session")
def warm_python() -> Iterator[WarmPython]:
    """Return an interpreter with torch that runs programs, each in a process of its own."""
    python = WarmPython()
    yield python
    python.close()
