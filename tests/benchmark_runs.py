"""Runs a benchmark's command line on small cases, as the tests of every package's benchmark do."""

import functools
import gc
import json
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

from attn_ops.benchmark import command

# Measuring them takes longer than a small case does, and one answer serves all tests.
measure_ceilings = functools.cache(command.measure_ceilings)


def run_quickly(program: ModuleType, folder: Path, *arguments: str) -> tuple[int, Any]:
    """Return the exit status of `program.main` and the JSON that it wrote into `folder`."""
    threads = torch.get_num_threads()
    gc.freeze()  # it collects before each case, and would search all that other tests left
    try:
        with patch.object(command, "measure_ceilings", measure_ceilings):
            status = program.main(["--quick", "--threads", "1", "--out", str(folder), *arguments])
    finally:
        torch.set_num_threads(threads)
    return status, json.loads((folder / "benchmark.json").read_text())
