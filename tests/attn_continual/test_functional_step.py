"""Graphs of the step: one across the fill boundary, for any number of streams, and for chunks."""

import doctest
import io

import pytest
import torch
from torch.testing import assert_close

from attn_continual import (
    FunctionalStep,
    SingleOutputMultiheadAttention,
    functional_step,
    testing,
)
from running_mean import RunningMean

L, N, T, E = 4, 3, 7, 8
OPTIONS = [
    {},
    pytest.param(
        {"query_index": -3, "add_bias_kv": True, "batch_first": False}, marks=pytest.mark.slow
    ),
]
CHUNKS = [5, 2, 9, 3]  # the first is no other size there is, which a graph would take it for

tracing = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning"
)
compiling = pytest.mark.filterwarnings(
    "ignore:.*Function'> should not be instantiated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch.compiler.reset()


def make(**options):
    torch.manual_seed(0)
    return SingleOutputMultiheadAttention(
        E, 2, sequence_len=L, dtype=torch.float64, **options
    ).eval()


def inputs(streams=N, steps=T):
    generator = torch.Generator().manual_seed(streams)
    return torch.randn(streams, steps, E, dtype=torch.float64, generator=generator)


def assert_same_steps(got, expected, streams=N):
    """Feed both, from tensors to tensors, the same stream, and compare all that they return."""
    state = other = expected.initial_state(streams)
    for row in inputs(streams).unbind(1):
        y, *state, valid = got(row, *state)
        expected_y, *other, expected_valid = expected(row, *other)
        assert torch.equal(valid, expected_valid)
        assert_close(y, expected_y, rtol=0, atol=1e-12)
        for a, b in zip(state, other, strict=True):
            assert_close(a, b, rtol=0, atol=1e-12)


def assert_same_chunks(got, expected, lengths, streams=N):
    state = other = expected.initial_state(streams)
    for chunk in inputs(streams, sum(lengths)).split(lengths, 1):
        x = chunk if expected.module.time_axis == 1 else chunk.transpose(0, 1)
        y, *state, valid = got(x, *state)
        expected_y, *other, expected_valid = expected(x, *other)
        assert torch.equal(valid, expected_valid)
        assert_close(y, expected_y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@compiling
class TestSingleOutput:
    def test_one_compiled_graph_serves_every_step(self, options):
        step = FunctionalStep(make(**options))
        compiled = torch.compile(step, fullgraph=True, dynamic=False, backend="aot_eager")
        with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
            assert_same_steps(compiled, step)

    def test_one_compiled_graph_serves_chunks_of_any_length(self, options):
        steps = FunctionalStep(make(**options), "steps")
        compiled = torch.compile(steps, fullgraph=True, dynamic=True, backend="aot_eager")
        with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
            assert_same_chunks(compiled, steps, CHUNKS)

    def test_gradients_pass_through_compiled_steps(self, options):
        module = make(**options)
        compiled = torch.compile(module.step, fullgraph=True, backend="aot_eager")
        found = []
        for step in (compiled, module.step):
            state, total = module.initial_state(N), 0
            for row in inputs().unbind(1):
                y, state, valid = step(row, state)
                total = total + y[valid].square().sum()
            found.append(torch.autograd.grad(total, list(module.parameters())))
        assert_close(*found, rtol=1e-10, atol=1e-10)

    def test_exported_step(self, options):
        step = FunctionalStep(make(**options))
        streams = torch.export.Dim("streams", min=1, max=64)
        state = step.initial_state(N)
        shapes = ({0: streams}, tuple({0: streams} for _ in state))
        with torch.no_grad():
            arguments = (inputs()[:, 0], *state)
            program = torch.export.export(step, arguments, dynamic_shapes=shapes).module()
            for number in (1, N, 7):
                assert_same_steps(program, step, number)

    def test_exported_chunks(self, options):
        steps = FunctionalStep(make(**options), "steps")
        streams = torch.export.Dim("streams", min=1, max=64)
        time = torch.export.Dim("time", min=2, max=64)
        state, axis = steps.initial_state(N), steps.module.time_axis
        shapes = ({axis: time, 1 - axis: streams}, tuple({0: streams} for _ in state))
        x = inputs() if axis == 1 else inputs().transpose(0, 1)
        with torch.no_grad():
            program = torch.export.export(steps, (x, *state), dynamic_shapes=shapes).module()
            for number in (1, N, 7):
                assert_same_chunks(program, steps, CHUNKS, number)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@tracing
def test_traced_step_survives_a_file(options):
    step = FunctionalStep(make(**options))
    file = io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(step, (inputs()[:, 0], *step.initial_state(N))), file)
        file.seek(0)
        traced = torch.jit.load(file)
        for number in (1, N, 7):
            assert_same_steps(traced, step, number)


def test_it_is_the_module_that_it_holds():
    module = RunningMean(window=2).train()
    step = FunctionalStep(module)
    assert step.training
    assert not step.eval().module.training
    assert [name for name, _ in step.named_parameters()] == ["module.weight"]
    x = torch.ones(N, 3, dtype=torch.float64)
    state = step.initial_state(N)
    y, *state, valid = step(x, *state)
    assert not valid.any()
    y, *state, valid = step(x, *state)
    assert valid.all()
    assert_close(y, x @ module.weight)


def test_another_number_of_tensors_and_another_method_are_refused():
    with pytest.raises(ValueError, match="expected method 'step' or 'steps', got 'forward'"):
        FunctionalStep(make(), "forward")
    step = FunctionalStep(make())
    with pytest.raises(ValueError, match="expected the 5 tensors of a state, got 4"):
        step(inputs()[:, 0], *step.initial_state(N)[:-1])


@pytest.mark.parametrize("module", [functional_step, testing], ids=lambda m: m.__name__)
def test_examples_of_the_documentation(module):
    failed, attempted = doctest.testmod(module)
    assert attempted > 0
    assert failed == 0
