"""One graph of every continual layer's functional step, and of its chunks, whatever was seen."""

import io

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

from attn_continual import FunctionalStep
from continual_layers import CASES, E, N, make

STEPS = 13
CHUNKS = [5, 2, 9, 3]  # across the fill boundary and the wrap, and longer than windows
STREAMS = (N, 1, 7)


@pytest.fixture(autouse=True)
def _forget_shapes():
    """Let torch infer each operator's shape anew: with symbolic ones, its cache takes longer."""
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        yield


def by_layer(*quick):
    """Run for every layer, and all but the `quick` ones among the slow tests."""
    marks = {name: [] if name in quick else [pytest.mark.slow] for name in CASES}
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=marks[name]) for name in CASES]
    )


def inputs_for(module, lengths, streams=N):
    """Return chunks of the given lengths as the module takes them, or steps for None."""
    single = lengths is None
    generator = torch.Generator().manual_seed(streams)
    shape = (streams, STEPS if single else sum(lengths), E)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    if single:
        return x.unbind(1)
    x = x.movedim((0, 1), (module.stream_axis, module.time_axis))
    return x.split(lengths, module.time_axis)


def assert_same_outputs(got, expected, lengths=None, streams=N):
    """Feed both, from tensors to tensors, the same stream, and compare all that they return."""
    state = other = expected.initial_state(streams)
    with torch.no_grad():
        for x in inputs_for(expected.module, lengths, streams):
            y, *state, valid = got(x, *state)
            expected_y, *other, expected_valid = expected(x, *other)
            assert torch.equal(valid, expected_valid)
            assert_close(y, expected_y, rtol=0, atol=1e-12)
            assert_close(state, other, rtol=0, atol=1e-12)


@by_layer("retroactive", "stacked encoder", "causal by relative position")
def test_one_compiled_graph_serves_every_step(name):
    torch.compiler.reset()
    step, graphs = FunctionalStep(make(name, torch.float64)[0]), CompileCounter()
    assert_same_outputs(torch.compile(step, fullgraph=True, backend=graphs), step)
    assert graphs.frame_count == 1


@by_layer("oldest output")
def test_one_compiled_graph_serves_chunks_of_any_length(name):
    torch.compiler.reset()
    steps, graphs = FunctionalStep(make(name, torch.float64)[0], "steps"), CompileCounter()
    compiled = torch.compile(steps, fullgraph=True, dynamic=True, backend=graphs)
    assert_same_outputs(compiled, steps, CHUNKS)
    assert graphs.frame_count == 1


@by_layer(*CASES)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_traced_step_survives_a_file(name):
    step, file = FunctionalStep(make(name, torch.float64)[0]), io.BytesIO()
    with torch.no_grad():
        x = inputs_for(step.module, None)[0]
        torch.jit.save(torch.jit.trace(step, (x, *step.initial_state(N))), file)
    file.seek(0)
    traced = torch.jit.load(file)
    for streams in STREAMS:
        assert_same_outputs(traced, step, streams=streams)


@by_layer("oldest output")
@pytest.mark.parametrize("lengths", [None, CHUNKS], ids=["steps", "chunks"])
def test_exported_for_any_number_of_streams(name, lengths):
    run = FunctionalStep(make(name, torch.float64)[0], "steps" if lengths else "step")
    streams = torch.export.Dim("streams", min=1, max=64)
    x, state = inputs_for(run.module, lengths)[0].contiguous(), run.initial_state(N)
    dims = {0: streams}
    if lengths:
        time = torch.export.Dim("time", min=2, max=64)
        dims = {run.module.stream_axis: streams, run.module.time_axis: time}
    shapes = (dims, tuple({0: streams} for _ in state))
    with torch.no_grad():
        program = torch.export.export(run, (x, *state), dynamic_shapes=shapes).module()
    for number in STREAMS:
        assert_same_outputs(program, run, lengths, number)
