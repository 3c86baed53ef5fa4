"""What every mechanism promises of torch.func: the gradients of autograd, sample by sample too."""

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.testing import assert_close

from mechanism_cases import CASES

every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)

pytestmark = [
    # Which torch says of every operator that runs sample by sample.
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    # Dynamo itself makes the instance that torch warns of.
    pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning"),
]


@every
def test_grad_is_that_of_autograd(case):
    attention, operands = case.build(torch.float64), case.operands(torch.float64)
    parameters = dict(attention.named_parameters())

    def loss(parameters, operands):
        return functional_call(attention, parameters, operands).square().sum()

    found = grad(loss, argnums=(0, 1))(parameters, operands)
    leaves = [*parameters.values(), *(x.requires_grad_() for x in operands)]
    loss_of_leaves = attention(*operands).square().sum()
    expected = torch.autograd.grad(loss_of_leaves, leaves, materialize_grads=True)
    assert_close([*found[0].values(), *found[1]], list(expected))


@every
def test_gradients_of_samples_are_those_of_each_alone(case):
    attention, operands = case.build(torch.float64), case.operands(torch.float64)
    samples = [x.unsqueeze(1) for x in operands]  # of a batch of 1 each

    def loss(*operands):
        return attention(*operands).square().sum()

    gradient = grad(loss, argnums=(0, 1, 2))
    found = vmap(gradient)(*samples)
    for place in range(len(samples[0])):
        expected = gradient(*(x[place] for x in samples))
        assert_close(tuple(x[place] for x in found), expected)


@pytest.mark.parametrize("name", ["favor", "fourier_mix", "lambda"])
def test_grad_compiles_through_functions_of_our_own(name):
    torch.compiler.reset()
    case = next(case for case in CASES if case.name == name)
    attention = case.build()
    gradient = grad(lambda *operands: attention(*operands).square().sum())
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    assert_close(compiled(*case.operands()), gradient(*case.operands()))
