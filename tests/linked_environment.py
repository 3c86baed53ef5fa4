"""Makes environments that see distributions installed here, so that torch is downloaded once."""

import sysconfig
import venv
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(sysconfig.get_path("purelib"))


def create_linked_environment(folder: Path, distributions: Iterable[str]) -> Path:
    """Make a virtual environment in `folder`, and return its interpreter.

    It has, by links, pip, these distributions and all that they require, but nothing else.
    """
    venv.create(folder)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    links = folder / "links"
    links.mkdir()
    for name in _top_level_names(["pip", *distributions]):
        (links / name).symlink_to(HERE / name)
    # pip neither replaces nor removes what lies outside of its own site-packages.
    (site / "links.pth").write_text(str(links))
    return python


def _top_level_names(distributions: Iterable[str]) -> set[str]:
    """Return the files and folders of site-packages that hold these and their requirements."""
    return {
        file.parts[0]
        for name in _with_requirements(distributions)
        for file in metadata.distribution(name).files or ()
        if file.parts[0] not in ("..", "__pycache__")
    }


def _with_requirements(distributions: Iterable[str]) -> set[str]:
    found: set[tuple[str, str]] = set()
    left = [(name, "") for name in distributions]
    while left:
        wanted = left.pop()
        if wanted not in found:
            found.add(wanted)
            left += _requirements(*wanted)
    return {name for name, _ in found}


def _requirements(distribution: str, extra: str) -> Iterator[tuple[str, str]]:
    """Yield what a distribution requires for one of its extras, "" for none."""
    for text in metadata.requires(distribution) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield from ((requirement.name, wanted) for wanted in ("", *requirement.extras))
