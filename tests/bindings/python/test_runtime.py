"""The queries about the library and the machine, and how statuses become exceptions."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from attn_ops import _native


def ask(expression, **environment):
    """Evaluate `expression` in a process where torch is not to be found."""
    program = f"import sys; sys.modules['torch'] = None; from attn_ops import _native; {expression}"
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_version_is_the_distribution_s():
    assert _native.version() == importlib.metadata.version("attn-ops")


def test_isa_in_use_is_one_that_can_run():
    assert _native.cpu_isa() in _native.cpu_isas()
    assert "scalar" in _native.cpu_isas()


@pytest.mark.parametrize("isa", _native.cpu_isas())
def test_isa_can_be_forced(isa):
    assert ask("print(_native.cpu_isa())", ATTN_CPU_ISA=isa).stdout == f"{isa}\n"


def test_unknown_isa_is_a_value_error():
    answer = ask("_native.cpu_isa()", ATTN_CPU_ISA="mmx")
    assert "ValueError" in answer.stderr
    assert "mmx" in answer.stderr


def test_isa_of_another_machine_is_not_implemented():
    foreign = {"neon", "avx2"} - set(_native.cpu_isas())
    answer = ask("_native.cpu_isa()", ATTN_CPU_ISA=foreign.pop())
    assert "NotImplementedError" in answer.stderr


def test_number_of_threads_follows_the_environment():
    assert ask("print(_native.num_threads())", ATTN_NUM_THREADS="3").stdout == "3\n"
    assert _native.num_threads() >= 1


def test_import_loads_neither_numpy_nor_torch():
    loaded = "[name for name in ('numpy', 'torch') if sys.modules.get(name)]"
    assert ask(f"import attn_ops; print({loaded})").stdout == "[]\n"
