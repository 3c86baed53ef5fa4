"""Keeps torch on one thread while the numerics tests run, and names their dtypes."""

from collections.abc import Iterator

import pytest
import torch


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a dtype, so that `-k bfloat16` finds the tests that have it."""
    return str(val).removeprefix("torch.") if isinstance(val, torch.dtype) else None


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Torch computes small references only; its idle threads spin and slow down the library's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
