"""The command line of the benchmark of attention."""

import sys
from collections.abc import Sequence

from attn_ops.benchmark import require_extra

require_extra("attn-ops")

from attn_ops.benchmark.cases import CASES  # noqa: E402  only now
from attn_ops.benchmark.command import run  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 if any result was wrong."""
    description = "Time attention against torch's SDPA, itself and the machine's limits."
    return run(CASES, "attn_ops", description, arguments)


if __name__ == "__main__":
    sys.exit(main())
