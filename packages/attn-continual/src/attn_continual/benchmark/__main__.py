"""The command line of the benchmark."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from attn_ops.benchmark import require_extra

require_extra("attn-continual")

from attn_continual.benchmark.cases import CASES  # noqa: E402  only now
from attn_ops.benchmark.command import run  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 if any result was wrong.

    Times are the processor's: a step takes less than what other programs take in between.
    """
    description = "Time steps and relative positions against the same in plain torch."
    return run(CASES, "attn_continual", description, arguments, time.process_time)


if __name__ == "__main__":
    sys.exit(main())
