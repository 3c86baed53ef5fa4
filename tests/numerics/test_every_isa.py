"""The numerics tests once more under each of the other kernels that this machine runs.

A process reads ATTN_CPU_ISA once, so each ISA gets a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attn_ops import _native

HERE = Path(__file__).parent
PYTEST = ("-m", "pytest", "-q", "--tb=short", "-m", "not slow")
CURRENT = _native.cpu_isa()
# These two differ in bfloat16 alone: what else the one has, the other's tests have seen.
REST = "avx512" if CURRENT == "avx512_bf16" else "avx512_bf16"
CHOSEN = {REST: ("-k", "bfloat16 or not (float32 or float16 or float64 or gradcheck)")}
OTHERS = [] if "ATTN_CPU_ISA" in os.environ else [i for i in _native.cpu_isas() if i != CURRENT]


@pytest.mark.slow
@pytest.mark.parametrize("isa", OTHERS)
def test_numerics_under(isa):
    files = [file for file in sorted(HERE.glob("test_*.py")) if file.name != Path(__file__).name]
    done = subprocess.run(
        [sys.executable, *PYTEST, *CHOSEN.get(isa, ()), *map(str, files)],
        cwd=HERE.parent.parent,
        env=os.environ | {"ATTN_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
