"""Measures how far memory grows at the peak of a call, in a process of its own.

Counted is what the kernel counts, resident memory, so that nothing escapes: tensors, the scratch
of kernels, and what libraries keep. Only a process whose allocator returns what is freed shows
that, so that this module is run as a program, which reads what to measure from its input.
"""

import gc
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

Preparation = Callable[[], Callable[[], Sequence[Tensor]]]
"""Makes inputs and binds a call to them; another process must be able to import it."""

_RETURN_WHAT_IS_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def measure_peaks(preparations: Sequence[Preparation]) -> list[int]:
    """Return the peak of each call in bytes, beyond its inputs and the tensors that it returns.

    On one thread, of a second call. Raises: RuntimeError if the process fails.
    """
    done = subprocess.run(  # noqa: S603  this module
        [sys.executable, "-m", __name__],
        input=pickle.dumps(list(preparations)),
        env=os.environ | _RETURN_WHAT_IS_FREED,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of calls failed:\n{done.stderr.decode()}")
    return json.loads(done.stdout)


def _peak_bytes(prepare: Preparation) -> int:
    call = prepare()
    call()  # what is loaded and kept once
    gc.collect()
    before = _forget_peak()
    results = call()
    returned = sum(x.untyped_storage().nbytes() for x in results)
    return max(_resident("VmHWM") - before - returned, 0)


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
    """Print the bytes of the pickled preparations on standard input, as JSON."""
    torch.set_num_threads(1)
    preparations = pickle.loads(sys.stdin.buffer.read())  # noqa: S301  from measure_peaks
    sys.stdout.write(json.dumps([_peak_bytes(prepare) for prepare in preparations]))


if __name__ == "__main__":
    main()
