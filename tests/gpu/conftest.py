"""Skips these tests where no GPU can run them.

ATTN_TEST_DEVICE=cpu runs what of them a CPU can: it tests the tests.
"""

import pytest

torch = pytest.importorskip("torch")

from attn_ops import _native  # noqa: E402  needs torch to be there
from gpu.device import DEVICE  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    if DEVICE.type != "cuda":
        return
    if not _native.has_cuda():
        reason = "built without CUDA kernels"
    elif not torch.cuda.is_available():
        reason = "no GPU here"
    else:
        return
    for item in items:
        if "tests/gpu" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def needs_cuda() -> None:
    """Skip a test that asks for what a CPU has not."""
    if DEVICE.type != "cuda":
        pytest.skip("a matter of GPUs")
