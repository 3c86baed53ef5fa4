"""Fixtures of every test. This file imports no torch: some tests run where there is none."""

from pathlib import Path

import pytest

from wheels import Installation, build_wheel, install_wheel


@pytest.fixture(scope="session")
def wheel() -> Path:
    """Return the wheel of this tree; the source distribution it was built from lies beside it."""
    return build_wheel()


@pytest.fixture(scope="session")
def installed_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Return an environment without torch that holds the wheel."""
    return install_wheel(wheel, tmp_path_factory.mktemp("installed_wheel"))


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of the wheel in one process of `pytest -n`: each process would build its own.

    They come first, because they take longest.
    """
    of_the_wheel = [item for item in items if "wheel" in getattr(item, "fixturenames", ())]
    for item in of_the_wheel:
        item.add_marker(pytest.mark.xdist_group("wheel"))
    items.sort(key=lambda item: item not in of_the_wheel)
