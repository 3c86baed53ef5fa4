"""Prints the picture of every pattern: `python -m attn_modules.patterns > docs/patterns.svg`."""

import sys

from attn_modules.patterns.gallery import svg

sys.stdout.write(svg())
