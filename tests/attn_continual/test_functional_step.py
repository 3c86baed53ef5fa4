"""What `FunctionalStep` holds and refuses; `test_every_graph` runs it in graphs."""

import doctest

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


def make():
    torch.manual_seed(0)
    return SingleOutputMultiheadAttention(E, 2, sequence_len=L, dtype=torch.float64).eval()


def inputs():
    generator = torch.Generator().manual_seed(N)
    return torch.randn(N, T, E, dtype=torch.float64, generator=generator)


@pytest.mark.filterwarnings(
    "ignore:.*Function'> should not be instantiated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)
def test_gradients_pass_through_compiled_steps():
    torch.compiler.reset()
    module = make()
    compiled = torch.compile(module.step, fullgraph=True, backend="aot_eager")
    found = []
    for step in (compiled, module.step):
        state, total = module.initial_state(N), 0
        for row in inputs().unbind(1):
            y, state, valid = step(row, state)
            total = total + y[valid].square().sum()
        found.append(torch.autograd.grad(total, list(module.parameters())))
    assert_close(*found, rtol=1e-10, atol=1e-10)


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


@pytest.mark.parametrize("method", ["step", "steps"])
def test_masks_follow_the_state(method):
    module = make()
    x = inputs()[:, 0] if method == "step" else inputs()
    padding, active = torch.rand(x.shape[:-1]) < 0.4, torch.tensor([True, False, True])
    mask = torch.randn(L, L, dtype=torch.float64)
    step = FunctionalStep(module, method, ["key_padding_mask", "attn_mask", "active"])
    state = step.initial_state(N)
    masks = (padding, mask, active)
    y, *new, valid = step(x, *state, *masks)
    expected, wanted, is_valid = getattr(module, method)(
        x,
        module.initial_state(N),
        key_padding_mask=padding,
        attn_mask=mask,
        active=active,
    )
    assert_close((y, valid, *new), (expected, is_valid, *wanted), rtol=0, atol=0)
    exported = torch.export.export(step, (x, *state, *masks)).module()
    assert_close(exported(x, *state, *masks), (y, *new, valid))
    with pytest.raises(ValueError, match="state and key_padding_mask, attn_mask, active, got 7"):
        step(x, *state, padding, mask)


@pytest.mark.parametrize("names", [["in_place"], ["mask"], "active", ["active", "active"]])
def test_unknown_inputs_are_refused(names):
    with pytest.raises(ValueError, match="expected inputs, some of key, value, key_padding_mask"):
        FunctionalStep(make(), inputs=names)


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
