"""`python -m attn_ops.info`: what it says of the build, and of a described call."""

import os
import re
import subprocess
import sys

import pytest
import torch

from attn_ops import _native, info
from attn_ops._choose import ALL_BW_OPS, ALL_FW_OPS
from attn_ops._lower import MASK_CLASSES
from attn_ops._support_matrix import EXAMPLES, describe_call, support_matrix
from attn_ops.fmha import cpu


def printed(capsys, *arguments, status=0):
    assert info.main(arguments) == status
    return capsys.readouterr().out


def test_every_operator_and_the_machine_are_listed(capsys):
    lines = dict(line.split(maxsplit=1) for line in printed(capsys).splitlines())
    for operator in (*ALL_FW_OPS, *ALL_BW_OPS):
        assert lines[f"memory_efficient_attention.{operator.NAME}:"].startswith(operator.info())
    assert lines["memory_efficient_attention.cpuF:"] == "available"
    assert lines["memory_efficient_attention.fa2F:"].startswith("unavailable: here by name alone")
    if not _native.has_cuda():
        assert "nvcc" in lines["build.cuda:"]
        assert "see build.cuda" in lines["memory_efficient_attention.cutlassF:"]
    assert lines["cpu.instruction_set:"] == _native.cpu_isa()
    assert lines["cpu.threads:"] == str(_native.num_threads())
    assert lines["pytorch.version:"] == torch.__version__


def test_command_runs_without_a_warning():
    command = [sys.executable, "-W", "error", "-m", "attn_ops.info"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("attn_ops ")


WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = None
runpy.run_module("attn_ops.info", run_name="__main__")
"""


def run_without_torch(*arguments):
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_build_is_described_without_torch():
    done = run_without_torch()
    assert done.returncode == 0
    assert "unavailable: needs torch 2.10 or newer" in done.stdout
    assert f"cpu.instruction_set:{' ' * 25}{_native.cpu_isa()}" in done.stdout


def test_call_without_torch_ends_with_a_message():
    done = run_without_torch("--matrix")
    assert done.returncode == 2
    assert "error: memory_efficient_attention needs torch 2.10 or newer" in done.stderr


def test_unknown_instruction_set_is_reported():
    command = [sys.executable, "-m", "attn_ops.info"]
    environment = {**os.environ, "ATTN_CPU_ISA": "abacus"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert re.search(r"cpu.instruction_set: +none: .*abacus", done.stdout)
    for operator in ("cpuF", "cpuB"):
        assert re.search(rf"attention\.{operator}: +unavailable: .*instruction set", done.stdout)


def test_call_on_the_cpu_takes_its_operators(capsys):
    text = printed(capsys, "--shape", "2", "5", "4", "8", "--key-heads", "2", "--grad")
    assert "query       : shape=(2, 5, 4, 8) (torch.float32)" in text
    assert "key         : shape=(2, 5, 2, 8) (torch.float32)" in text
    assert "forward: `cpuF`" in text
    assert "backward: `cpuB`" in text
    assert "`cutlassF` is not supported because:\n    device=cpu (supported: {'cuda'})" in text


def test_call_on_an_absent_device_has_no_operator(capsys):
    text = printed(
        capsys,
        *("--device", "xpu", "--dtype", "float16", "--mask", "LowerTriangularMask"),
        *("--shape", "2", "1024", "8", "64"),
        status=1,
    )
    assert "LowerTriangularMask" in text
    assert "forward: no operator" in text
    assert "`cpuF` is not supported because:\n    device=xpu (supported: {'cpu'})" in text
    assert "`fa2F` is not supported because:\n    device=xpu (supported: {'cuda'})" in text
    assert "backward" not in text


@pytest.mark.parametrize("mask", EXAMPLES)
def test_every_mask_can_be_asked_about(capsys, mask):
    assert "forward: `cpuF`" in printed(capsys, "--mask", mask)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "1", "2"], "--shape: expected 3, 4 or 5 extents"),
        (["--shape", "1", "-2", "3", "4"], "extents of 0 or more"),
        (["--shape", "a"], "invalid int value"),
        (["--shape", "1", "2", "3", "--key-heads", "2"], "--key-heads: expected only with"),
        (["--key-heads", "3"], "query's heads to be a multiple of key's, got 8, 3"),
        (["--key-heads", "0"], "expected one head or more"),
        (["--keys", "-1"], "expected 0 or more"),
        (["--mask", "Triangle"], "--mask: expected one of None, Tensor, LowerTriangularMask"),
        (["--device", "abacus"], "abacus"),
        (["--shape", "2", "10", "4", "8", "--mask", "BlockDiagonalMask"], "Expected batch_size=1"),
        (["--dropout", "2"], "p in [0, 1], got 2.0"),
        (["--dtype", "int8"], "invalid choice"),
        (["--output-dtype", "float64"], "output_dtype in"),
    ],
)
def test_call_that_makes_no_sense_ends_with_a_message(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        info.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_examples_are_all_masks_there_are():
    examples = {name: make() for name, make in EXAMPLES.items()}
    assert {type(mask) for mask in examples.values()} == {type(None), torch.Tensor, *MASK_CLASSES}
    for name, mask in examples.items():
        assert type(mask).__name__ in (name, "NoneType")


def test_matrix_has_a_line_for_every_mask(capsys):
    lines = printed(capsys, "--matrix").strip().splitlines()
    assert lines == support_matrix().splitlines()
    assert lines[0] == (
        "| `attn_bias` | forward CPU | backward CPU | forward CUDA | backward CUDA |"
    )
    assert len(lines) == 2 + len(EXAMPLES)
    cuda = "emulated | emulated" if _native.has_cuda() else "no | no"
    assert f"| `BlockDiagonalMask` | yes | yes | {cuda} |" in lines


def test_described_call_has_no_data_and_needs_no_device():
    call = describe_call("cuda", torch.float16, (1, 10**6, 8, 64), p=0.5)
    assert call.query.device.type == "cuda"
    assert call.p == 0.5
    assert not cpu.FwOp.supports(call)
