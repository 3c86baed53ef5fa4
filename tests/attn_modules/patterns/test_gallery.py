"""The committed picture is the one that the code draws, and shows what the patterns keep."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import torch

from attn_modules.patterns import gallery

COMMITTED = Path(__file__).parents[3] / "packages/attn-modules/docs/patterns.svg"
RUN = re.compile(r"M(\d+) (\d+)h(\d+)v1H(\d+)z")


def test_the_committed_picture_is_up_to_date():
    printed = subprocess.run(
        [sys.executable, "-m", "attn_modules.patterns"], capture_output=True, check=True
    ).stdout.decode()
    assert COMMITTED.read_text() == printed, (
        "run: python -m attn_modules.patterns > packages/attn-modules/docs/patterns.svg"
    )


def test_panels_show_the_patterns():
    namespace = {"svg": "http://www.w3.org/2000/svg"}
    panels = ET.fromstring(gallery.svg()).findall("svg:g", namespace)  # noqa: S314
    pictures = gallery.pictures()
    assert len(panels) == len(pictures)
    for panel, (caption, pattern) in zip(panels, pictures.items(), strict=True):
        assert panel.find("svg:text", namespace).text == caption
        shown = torch.zeros(pattern.shape, dtype=torch.double)
        for path in panel.findall("svg:g/svg:path", namespace):
            for first, row, length, back in RUN.findall(path.get("d")):
                assert first == back
                shown[int(row), int(first) : int(first) + int(length)] = float(
                    path.get("opacity", "1")
                )
        torch.testing.assert_close(shown, pattern.double(), atol=1 / 16 + 1e-6, rtol=0)


def test_the_command_answers_for_help():
    help_of = subprocess.run(
        [sys.executable, "-m", "attn_modules.patterns", "--help"], capture_output=True, check=True
    ).stdout.decode()
    assert "SVG image" in help_of
    assert "<svg" not in help_of
