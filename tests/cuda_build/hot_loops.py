"""What a warp issues in the loops of a kernel that multiply matrices.

PYTHONPATH=tests python -m cuda_build.hot_loops sm80/forward_128.cu compiles that for sm_90. For
each loop with matrix instructions it prints how many there are, and how many instructions the
shortest way through it has that meets as many of them as one round can. Loops inside count for one
round. It needs nvcc, and nvdisasm (`pip install nvidia-cuda-nvdisasm`) in the PATH.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cuda_build.nvcc import compile_source, readable_name

_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(.*?);")
_LABEL = re.compile(r"\s*(\.L\w+):")
_BRANCH = re.compile(r"\bBRA\b.*`\((\.L\w+)\)")
_GUARD = re.compile(r"^@!?U?P\w+\s+")


@dataclass(frozen=True)
class Loop:
    """One loop: its first and last instruction, and what a round issues."""

    first: int
    last: int
    matrix_instructions: int
    instructions: int


@dataclass(frozen=True)
class Listing:
    """A kernel's machine code."""

    instructions: list[str]
    targets: dict[int, int]
    """Of branches: the instruction that each leads to."""

    @classmethod
    def of(cls, text: str) -> "Listing":
        """Read what nvdisasm prints of one function."""
        instructions: list[str] = []
        places: dict[str, int] = {}
        for line in text.splitlines():
            if label := _LABEL.match(line):
                places[label[1]] = len(instructions)
            elif instruction := _INSTRUCTION.match(line):
                instructions.append(instruction[1])
        branches = ((at, _BRANCH.search(text)) for at, text in enumerate(instructions))
        return cls(instructions, {at: places[found[1]] for at, found in branches if found})

    def followers(self, at: int) -> Iterator[int]:
        """Yield the instructions that may come after instruction `at`."""
        text = self.instructions[at]
        target = self.targets.get(at)
        has_condition = bool(_GUARD.match(text) or re.search(r"\bBRA\S*\s+!?U?P\d", text))
        if target is not None:
            yield target
        if has_condition or (target is None and not text.startswith("EXIT")):
            yield at + 1

    def is_matrix_instruction(self, at: int) -> bool:
        """Return whether instruction `at` multiplies matrices."""
        return _GUARD.sub("", self.instructions[at]).startswith("HMMA")

    def loops(self) -> Iterator[Loop]:
        """Yield the loops that multiply matrices, from the first to begin."""
        ends: dict[int, int] = {}
        for at, target in self.targets.items():
            if target <= at:
                ends[target] = max(at, ends.get(target, 0))
        for first, last in sorted(ends.items()):
            if any(self.is_matrix_instruction(at) for at in range(first, last + 1)):
                yield self._loop(first, last)

    def _loop(self, first: int, last: int) -> Loop:
        # Of each instruction the best way up to it: matrix instructions met, others counted down.
        best = {first: (0, 0)}
        round_trip = (0, 0)
        for at in range(first, last + 1):
            if at not in best:
                continue
            met, steps = best[at]
            way = (met + self.is_matrix_instruction(at), steps - 1)
            for follower in self.followers(at):
                if follower == first:
                    round_trip = max(round_trip, way)
                elif at < follower <= last:
                    best[follower] = max(best.get(follower, way), way)
        return Loop(first, last, round_trip[0], -round_trip[1])


def listings(cubin: Path) -> Iterator[tuple[str, Listing]]:
    """Yield the name and the code of each kernel."""
    command = ["nvdisasm", "-c", cubin]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for function in text.split("\t.section\t.text.")[1:]:
        mangled = function.split(",", 1)[0]
        yield readable_name(mangled) or mangled, Listing.of(function)


def main(file: str) -> None:
    """Print the loops of one source."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        compile_source(file, cubin, ["90"], "-cubin")
        for name, listing in listings(cubin):
            for loop in listing.loops():
                sys.stdout.write(
                    f"{name}, instructions {loop.first} to {loop.last}: a round of "
                    f"{loop.instructions}, {loop.matrix_instructions} of them HMMA\n"
                )


if __name__ == "__main__":
    main(sys.argv[1])
