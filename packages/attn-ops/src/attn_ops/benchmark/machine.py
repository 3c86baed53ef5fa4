"""Describes where the numbers come from: without it they mean nothing."""

import os
import platform
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

import attn_ops
from attn_ops import _native


@dataclass(frozen=True)
class Machine:
    """The processor, the software, and how busy both were."""

    processor: str
    processors: int
    """That this process may run on."""
    load: float
    """Programs running at the start, on average over a minute, this one among them."""
    cpu_isa: str
    attn_ops: str
    torch: str
    python: str
    system: str
    date: str
    """UTC, ISO 8601."""

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.processors} CPUs, load {self.load:.1f}; "
            f"attn_ops {self.attn_ops} with {self.cpu_isa} kernels, torch {self.torch}; {self.date}"
        )


def describe_machine() -> Machine:
    """Return the description of this machine, now."""
    return Machine(
        processor=_processor_name(),
        processors=len(os.sched_getaffinity(0)),
        load=os.getloadavg()[0],
        cpu_isa=_native.cpu_isa(),
        attn_ops=attn_ops.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        system=platform.platform(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
