"""Measures how far a mechanism's memory grows at its peak, in a process of its own.

Counted is what the kernel counts, resident memory, so that nothing escapes: tensors, the scratch
of kernels, and what libraries keep. Only a process whose allocator returns what is freed shows
that, so that this module is run as a program: `python -m attn_modules.benchmark.memory TITLE M…`.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from attn_modules.benchmark.cases import GROWTH_CASES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attn_modules.benchmark.growth import GrowthCase

_RETURN_WHAT_IS_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def measure_extra_bytes(case: GrowthCase, rows: Sequence[int]) -> list[int]:
    """Return the peak of a forward and its backward beyond inputs, result and gradients.

    One number for each of `rows`, on one thread. Raises: RuntimeError if the process fails.
    """
    done = subprocess.run(  # noqa: S603  this module, with a title of ours
        [sys.executable, "-m", __name__, case.title, *map(str, rows)],
        env=os.environ | _RETURN_WHAT_IS_FREED,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {case.title} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def _extra_bytes(case: GrowthCase, rows: int) -> int:
    attention, (*operands, grad_out) = case.build(rows), case.inputs(rows)
    leaves = [*operands, *attention.parameters()]

    def train() -> list[torch.Tensor]:
        out = attention(*operands)
        gradients = torch.autograd.grad(out, leaves, grad_out, allow_unused=True)
        return [out.detach(), *(x for x in gradients if x is not None)]

    train()  # what is loaded and kept once
    gc.collect()
    before = _forget_peak()
    results = train()
    wanted = sum(x.untyped_storage().nbytes() for x in results)
    return max(_resident("VmHWM") - before - wanted, 0)


def _forget_peak() -> int:
    """Set the peak back to what is resident now, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _resident(figure: str) -> int:
    """Return VmRSS, what is resident now, or VmHWM, its peak, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(figure + ":")]
    return int(line.split()[1]) * 1024


def main() -> None:
    """Print the bytes for the case and the numbers of rows on the command line, as JSON."""
    torch.set_num_threads(1)
    title, *rows = sys.argv[1:]
    (case,) = [case for case in GROWTH_CASES if case.title == title]
    sys.stdout.write(json.dumps([_extra_bytes(case, int(count)) for count in rows]))


if __name__ == "__main__":
    main()
