"""Prints how many bytes one forward and backward grow this process beyond inputs and outputs.

A program of its own, because only a fresh process has a peak that nothing else has raised:
`python -m numerics.peak_memory '{"Mq": 1, "Mkv": 65537}' none float32`.
"""

import json
import sys
from pathlib import Path

import torch

from attn_ops import _native
from numerics.cases import Case, Shape, make_problem
from numerics.library import options, unwritten


def memory(name: str) -> int:
    """Return a figure of this process' memory in bytes: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(name + ":")]
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Set the peak back to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def growth(case: Case) -> int:
    """Return the bytes that a forward and its backward add at their peak."""
    problem = make_problem(case)
    inputs = (problem.query, problem.key, problem.value)
    out, lse = unwritten(problem.grad_out), unwritten(problem.grad_lse)
    gradients = {
        "grad_query": unwritten(problem.query),
        "grad_key": unwritten(problem.key),
        "grad_value": unwritten(problem.value),
    }
    if problem.mask.additive_bias is not None:
        gradients["grad_bias"] = unwritten(problem.mask.additive_bias)
    forget_peak()
    before = memory("VmRSS")
    _native.attention_forward(*inputs, out, lse, **options(problem))
    _native.attention_backward(*inputs, out, lse, problem.grad_out, **gradients, **options(problem))
    return memory("VmHWM") - before


def main() -> None:
    """Print the growth for the shape, mask and dtype on the command line."""
    extents, mask, dtype = sys.argv[1:]
    print(growth(Case(Shape(**json.loads(extents)), mask, getattr(torch, dtype))))  # noqa: T201


if __name__ == "__main__":
    main()
