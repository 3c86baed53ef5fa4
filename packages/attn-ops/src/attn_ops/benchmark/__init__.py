"""Time attention against torch's SDPA and against the machine: `python -m attn_ops.benchmark`.

Needs torch, matplotlib and rich; in a clone, `pip install "./packages/attn-ops[benchmark]"`.
"""

from importlib.util import find_spec


def require_extra(distribution: str) -> None:
    """End the program with a line to stderr unless what benchmarks need is installed.

    distribution: whose extra `benchmark` has it.
    """
    missing = [name for name in ("torch", "matplotlib", "rich") if find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"benchmark: expected {' and '.join(missing)}, which the extra benchmark installs; "
            f'in a clone run pip install "./packages/{distribution}[benchmark]"'
        )
