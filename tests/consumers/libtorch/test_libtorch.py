"""Models saved from Python run in C++ programs that link libtorch and load our operators."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.cpp_extension import CUDA_HOME

import attn_ops
from attn_continual import FunctionalStep, SingleOutputMultiheadAttention, continual, returnn
from attn_continual.streams import tensors_of
from attn_ops import _library
from wheels import REPOSITORY, locked, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
compiling = pytest.mark.filterwarnings(  # inductor's own
    "ignore::DeprecationWarning", "ignore::FutureWarning"
)
SOURCE = Path(__file__).parent
QUICKLY_COMPILED = {  # two packages do not repay the time that precompiling torch's headers takes
    "aot_inductor.precompile_headers": False,
    "aot_inductor.compile_wrapper_opt_level": "O0",
}


class Model(nn.Module):
    """Full attention, and attention to a causal window of three keys."""

    def forward(self, x):
        full = attn_ops.memory_efficient_attention(x, x, x, scale=0.5)
        window = torch.ops.attn_ops.attention(x, x, x, band_left=2, band_right=0)
        return full - 2.0 * window


def make_input(*shape):
    numbers = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return numbers.sin().float().reshape(shape)


def fingerprint(out):
    flat = out.double().flatten()
    return torch.dot(flat, torch.arange(flat.numel(), dtype=torch.float64).cos()).item()


def package(program, file):
    """Compile an exported program ahead of time into `file`, and return that."""
    return torch._inductor.aoti_compile_and_package(
        program, package_path=str(file), inductor_configs=QUICKLY_COMPILED
    )


def saved(file, tensors):
    torch.save([tensor.clone() for tensor in tensors], file)
    return file


@pytest.fixture(scope="module")
def run_model():
    """Return a function from a saved model, its inputs and its state to a number for each output.

    The program stays in build/: it takes half a minute to compile.
    """
    if torch.version.cuda and not Path(CUDA_HOME or "", "include", "cuda_runtime.h").is_file():
        pytest.skip("the CMake package of a torch for CUDA wants the CUDA toolkit")
    build = REPOSITORY / "build" / "libtorch"
    torch_dir = f"-DTorch_DIR={torch.utils.cmake_prefix_path}/Torch"
    with locked(build):
        run(["cmake", "-S", str(SOURCE), "-B", str(build), "-G", "Ninja", torch_dir], cwd=SOURCE)
        run(["cmake", "--build", str(build)], cwd=SOURCE)

    def run_model(model, inputs, state=None):
        folder = Path(model).parent
        files = [model, saved(folder / "inputs.pt", inputs)]
        if state is not None:
            files.append(saved(folder / "state.pt", state))
        command = [build / "run_model", _library.torch_library(), *files]
        return [float(line) for line in run([str(word) for word in command], cwd=build).split()]

    return run_model


INPUTS = [make_input(2, length, 3, 8) for length in (5, 12)]
EXPECTED = pytest.approx([fingerprint(Model()(x)) for x in INPUTS], rel=1e-5)


def test_scripted_module(run_model, tmp_path):
    file = tmp_path / "model.pt"
    torch.jit.script(Model()).save(str(file))
    assert run_model(file, INPUTS) == EXPECTED


@compiling
def test_ahead_of_time_compiled_package(run_model, tmp_path):
    length = torch.export.Dim("length", min=2, max=4096)
    with torch.no_grad():
        inputs = (make_input(2, 6, 3, 8),)
        program = torch.export.export(Model(), inputs, dynamic_shapes={"x": {1: length}})
    assert run_model(package(program, tmp_path / "model.pt2"), INPUTS) == EXPECTED


def traced(step, arguments, folder):
    file = folder / "step.pt"
    torch.jit.trace(step, arguments).save(str(file))
    return file


def compiled(step, arguments, folder):
    return package(torch.export.export(step, arguments), folder / "step.pt2")


class SideBySide(nn.Module):
    """The steps of several layers of one input, which are compiled, and run, at once.

    A layer that remembers rows, one of whole windows, one of their last rows, and RETURNN's.
    """

    def __init__(self):
        super().__init__()
        encoded = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        encoder = nn.TransformerEncoder(encoded, 3, enable_nested_tensor=False)
        layers = [
            SingleOutputMultiheadAttention(8, 2, sequence_len=4, query_index=-2),
            continual(encoder, sequence_len=4),
            causal(returnn.CausalSelfAttention),
            causal(returnn.RelPosCausalSelfAttention),
        ]
        self.steps = nn.ModuleList(FunctionalStep(layer.eval()) for layer in layers)
        self.counts = [len(step.initial_state(1)) for step in self.steps]

    def begun(self, x, active):
        """Return the state of streams of which some have seen one step."""
        states = [
            step.module.step(x, step.module.initial_state(len(x)), active=active)[1]
            for step in self.steps
        ]
        return [tensor for state in states for tensor in tensors_of(state)]

    def forward(self, x, *state):
        outs, new_state, valids, first = [], [], [], 0
        for step, count in zip(self.steps, self.counts, strict=True):
            out, *more, valid = step(x, *state[first : first + count])
            outs, valids, new_state = [*outs, out], [*valids, valid], new_state + more
            first += count
        return torch.cat(outs), *new_state, torch.cat(valids)


def causal(cls):
    layer = cls(8, 8, key_dim_total=8, value_dim_total=4, num_heads=2, window=4)
    return returnn.ContinualSelfAttention(layer)


@compiling
@pytest.mark.parametrize("save", [traced, compiled])
def test_state_of_a_stream_carried_in_cpp(run_model, save, tmp_path):
    torch.manual_seed(0)
    step, inputs = SideBySide(), make_input(9, 3, 8).unbind()
    with torch.no_grad():
        state = start = step.begun(inputs[0], torch.tensor([True, False, True]))
        file, expected = save(step, (inputs[0], *state), tmp_path), []
        for x in inputs:
            y, *state, valid = step(x, *state)
            expected.append(fingerprint(y[valid]))
    assert run_model(file, inputs, start) == pytest.approx(expected, rel=1e-5, abs=1e-6)
