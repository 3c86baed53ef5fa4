"""Prints the picture of every pattern: `python -m attn_modules.patterns > docs/patterns.svg`."""

import argparse
import sys

from attn_modules.patterns.gallery import svg

argparse.ArgumentParser(
    prog="python -m attn_modules.patterns",
    description="Print an SVG image of every pattern to standard output.",
).parse_args()
sys.stdout.write(svg())
