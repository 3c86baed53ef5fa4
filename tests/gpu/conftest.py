"""Skips these tests where no GPU can run them.

ATTN_TEST_DEVICE=cpu runs what of them a CPU can: it tests the tests.
"""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from attn_ops import _native  # noqa: E402  needs torch to be there
from gpu.device import DEVICE  # noqa: E402


def _what_is_missing() -> str | None:
    """Return why no GPU can run these tests, or None."""
    if DEVICE.type != "cuda":
        return None
    if not _native.has_cuda():
        return "built without CUDA kernels"
    return None if torch.cuda.is_available() else "no GPU here"


MISSING = _what_is_missing()


class SkippedModule(pytest.Module):
    """A file that is skipped as a whole."""

    def collect(self) -> list[pytest.Item]:
        """Skip the file, which a thousand tests would otherwise do one by one."""
        pytest.skip(str(MISSING), allow_module_level=True)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    """Collect the tests of a file, or one skip."""
    return SkippedModule.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture
def needs_cuda() -> None:
    """Skip a test that asks for what a CPU has not."""
    if DEVICE.type != "cuda":
        pytest.skip("a matter of GPUs")
