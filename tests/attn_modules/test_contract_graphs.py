"""What every mechanism promises of graphs: torch.compile, torch.export and torch.jit.trace."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from mechanism_cases import CASES, LENGTH, gradients

every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
FIRST_FORMS = {case.name: case.id for case in reversed(CASES)}
first_forms = pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.id in FIRST_FORMS.values()],
    ids=lambda case: case.id,
)
COMPILED_QUICKLY = {"scaled_dot_product", "local", "nystrom", "favor-sm_reg-causal"}
mostly_slow = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case.id in COMPILED_QUICKLY else pytest.mark.slow)
        for case in CASES
    ],
    ids=[case.id for case in CASES],
)
COMPILED_THROUGHOUT = {"local-causal", "nystrom", "favor-sm_reg-causal"}
KEEP = torch.arange(LENGTH) < torch.tensor([[16], [9], [12]])

# Dynamo itself makes the instance that torch warns of, for every autograd function it traces.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    # Extents are checked once, in the trace, which keeps the checks' outcome.
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch.compiler.reset()


def test_first_calls_do_not_wait_for_the_compiler():
    program = """
import sys
from mechanism_cases import CASES, gradients
for case in CASES:
    operands = [x.requires_grad_() for x in case.operands()]
    gradients(case.build().train()(*operands), *operands)
    assert "torch._dynamo" not in sys.modules, f"{case.id} imports torch's compiler"
"""
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], check=True)


def assert_compiled_is_eager(case, backend):
    attention, masks = case.build(), {"key_padding_mask": KEEP}
    compiled = torch.compile(attention, fullgraph=True, backend=backend)
    operands = [x.requires_grad_() for x in case.operands()]
    inputs = [*operands, *attention.parameters()]
    results = []
    for call in (attention, compiled):
        out = call(*operands, **masks)
        results.append([out, *gradients(out, *inputs)])
    assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@mostly_slow
def test_the_whole_graph_compiles_forward_and_backward(case):
    assert_compiled_is_eager(case, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.id in COMPILED_THROUGHOUT], ids=lambda case: case.id
)
def test_inductor_compiles_forward_and_backward(case):
    assert_compiled_is_eager(case, "inductor")


@pytest.mark.slow
@first_forms
def test_training_compiles(case):
    attention = case.build(dropout=0.2).train()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    operands = [x.requires_grad_() for x in case.operands()]
    out = compiled(*operands)
    assert out.isfinite().all()
    assert not torch.equal(compiled(*operands), out)


@every
def test_export_keeps_the_results_for_any_batch(case):
    attention, operands, masks = case.build(), case.operands(), {"key_padding_mask": KEEP}
    of_batch = {0: torch.export.Dim("B", min=2, max=64)}
    # With symbolic shapes, torch's cache of operators' shapes takes longer than it saves.
    with torch.no_grad(), torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        program = torch.export.export(
            attention,
            operands,
            masks,
            dynamic_shapes=dict.fromkeys(("q", "k", "v", *masks), of_batch),
        ).module()
        fewer, kept = [x[:2] for x in operands], {"key_padding_mask": KEEP[:2]}
        for inputs, given in ((operands, masks), (fewer, kept)):
            out = program(*inputs, **given)
            assert_close(out, attention(*inputs, **given), rtol=1e-5, atol=1e-6)


@every
def test_a_trace_keeps_the_results(case):
    attention, operands = case.build(), case.operands()
    with torch.no_grad():
        traced = torch.jit.trace(attention, operands)
        other = tuple(x.flip(0) * 0.5 for x in operands)
        assert_close(traced(*other), attention(*other), rtol=1e-5, atol=1e-6)
