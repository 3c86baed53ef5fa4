"""Models saved from Python run in a C++ program that links libtorch and loads our operators."""

from pathlib import Path

import pytest
import torch
from torch import nn

import attn_ops
from attn_ops import _library
from wheels import REPOSITORY, locked, run

pytestmark = pytest.mark.slow
SOURCE = Path(__file__).parent


class Model(nn.Module):
    """Full attention, and attention to a causal window of three keys."""

    def forward(self, x):
        full = attn_ops.memory_efficient_attention(x, x, x, scale=0.5)
        window = torch.ops.attn_ops.attention(x, x, x, band_left=2, band_right=0)
        return full - 2.0 * window


def make_input(length):
    return torch.arange(2 * length * 3 * 8, dtype=torch.float64).sin().float().reshape(2, -1, 3, 8)


def fingerprint(out):
    flat = out.double().flatten()
    return torch.dot(flat, torch.arange(flat.numel(), dtype=torch.float64).cos()).item()


@pytest.fixture(scope="module")
def run_model():
    """Return a function from a saved model and a length to the fingerprint of its output.

    The program stays in build/: it takes half a minute to compile.
    """
    build = REPOSITORY / "build" / "libtorch"
    torch_dir = f"-DTorch_DIR={torch.utils.cmake_prefix_path}/Torch"
    with locked(build):
        run(["cmake", "-S", str(SOURCE), "-B", str(build), "-G", "Ninja", torch_dir], cwd=SOURCE)
        run(["cmake", "--build", str(build)], cwd=SOURCE)

    def run_saved(model, length):
        arguments = [str(_library.torch_library()), model, str(length)]
        return float(run([str(build / "run_model"), *arguments], cwd=build))

    return run_saved


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_module(run_model, tmp_path):
    file = str(tmp_path / "model.pt")
    torch.jit.script(Model()).save(file)
    for length in (5, 12):
        expected = fingerprint(Model()(make_input(length)))
        assert run_model(file, length) == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # inductor's own
def test_ahead_of_time_compiled_package(run_model, tmp_path):
    length = torch.export.Dim("length", min=2, max=4096)
    with torch.no_grad():
        program = torch.export.export(Model(), (make_input(6),), dynamic_shapes={"x": {1: length}})
    file = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "m.pt2"))
    for length in (5, 12):
        expected = fingerprint(Model()(make_input(length)))
        assert run_model(file, length) == pytest.approx(expected, rel=1e-5)
