"""Names say what is inside, and no file grows beyond what a reader takes in at once."""

import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SOURCE_SUFFIXES = {".h", ".c", ".cpp", ".cu", ".cuh", ".py", ".cmake"}
MOST_LINES = 450
VAGUE = re.compile(r"(^|_)(utils?|helpers?|misc|common)(_|$)|^new_|_v\d+$")


def own_files():
    """Return the files of the repository: tracked, or new and not ignored."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    files = [Path(line) for line in listing.splitlines()]
    return [file for file in files if (REPOSITORY / file).is_file()]


def test_no_name_is_vague():
    vague = [
        str(file) for file in own_files() for part in file.parts if VAGUE.search(Path(part).stem)
    ]
    assert not vague


def test_files_are_short():
    for file in own_files():
        if file.suffix in SOURCE_SUFFIXES:
            lines = len((REPOSITORY / file).read_text().splitlines())
            assert lines <= MOST_LINES, f"{file} has {lines} lines"


def test_every_source_file_says_its_job_first():
    openings = ("//", "/*", "#", '"""')
    for file in own_files():
        text = (REPOSITORY / file).read_text() if file.suffix in SOURCE_SUFFIXES else ""
        if text.strip():
            assert text.startswith(openings), f"{file} must open with a sentence on its job"


def test_readmes_of_folders_are_short():
    for file in own_files():
        if file.name == "README.md" and len(file.parts) > 1:
            lines = len((REPOSITORY / file).read_text().splitlines())
            assert lines <= 40, f"{file} has {lines} lines"
