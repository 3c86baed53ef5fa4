"""An interpreter that has imported torch already and forks for every program it is given.

Importing torch takes two seconds, longer than most programs that documents show.
"""

import json
import subprocess
import sys
from typing import NamedTuple

_SERVER = """
import json, os, sys, tempfile, torch

for line in sys.stdin:
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            exec(compile(json.loads(line), "<program>", "exec"), {"__name__": "__main__"})
            sys.exit()
        _, status = os.waitpid(child, 0)
        output.seek(0)
        print(json.dumps([os.waitstatus_to_exitcode(status), output.read()]), flush=True)
"""


class Outcome(NamedTuple):
    """How a program ended, and what it wrote to standard output and standard error."""

    returncode: int
    printed: str


class WarmPython:
    """Runs programs one after the other, each in a process of its own; warnings are errors."""

    def __init__(self) -> None:
        """Start the interpreter."""
        self._server = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, program: str) -> Outcome:
        """Run `program` as `python -c` would."""
        server = self._server
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(program) + "\n")
        server.stdin.flush()
        return Outcome(*json.loads(server.stdout.readline()))

    def run_module(self, module: str, *arguments: str) -> Outcome:
        """Run `module` as `python -m` would."""
        return self.run(
            f"import runpy, sys; sys.argv[1:] = {list(arguments)!r}; "
            f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
        )

    def close(self) -> None:
        """End the interpreter."""
        self._server.communicate()
