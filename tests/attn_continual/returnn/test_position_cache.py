"""What is kept of positions in evaluation, and when it is made anew."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from attn_continual.returnn import RelPosCausalSelfAttention, RelPosSelfAttention, single_step_dim
from attn_continual.returnn import relative_positions as module
from returnn_layers import made, source


@pytest.fixture
def projections(monkeypatch):
    """Return a list that grows by one number for every projection: how many rows it has."""
    counts = []
    project = module.Linear.forward

    def counted(self, x):
        if self.bias is None:  # the projection of positions alone has none
            counts.append(x.shape[0])
        return project(self, x)

    monkeypatch.setattr(module.Linear, "forward", counted)
    return counts


def test_positions_are_projected_once_in_evaluation(projections):
    layer, x = made(RelPosSelfAttention), source(2, 6)
    with torch.no_grad():
        first = layer(x)
        assert torch.equal(layer(x), first)
        layer(x[:, :4])
    assert len(projections) == 1
    layer(x)  # gradients want the projection in the graph
    layer.train()(x)
    assert len(projections) == 3


def test_steps_project_seldom(projections):
    layer, x = made(RelPosCausalSelfAttention), source(1, 40)
    state = layer.default_initial_state(batch_dims=[1], dtype=x.dtype)
    with torch.no_grad():
        for row in x.unbind(1):
            _, state = layer(row, single_step_dim, state=state)
    assert len(projections) < 10
    assert projections[-1] == 65


def in_place(weight, _layer):
    weight.mul_(2.0)


def loaded(_weight, layer):
    layer.load_state_dict({name: 2 * x for name, x in layer.state_dict().items()})


def replaced(weight, _layer):
    weight.data = 2 * weight.data


def optimised(weight, _layer):
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], 0.5).step()


def optimised_fused(weight, _layer):
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], 0.5, fused=True).step()  # autograd does not count this
    weight.grad = None


def trained(weight, layer):
    layer.train()
    weight.data.mul_(2.0)  # autograd does not count this
    layer.eval()


def converted(_weight, layer):
    layer.float()


CHANGES = [in_place, loaded, replaced, optimised, optimised_fused, trained, converted]


@pytest.mark.parametrize("learned", [False, True], ids=["sinusoids", "learned"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_are_seen(change, learned):
    layer, x = made(RelPosSelfAttention, learnable_pos_emb=learned), source(2, 6)
    with torch.no_grad():
        layer(x)
        change(layer.learned_pos_emb.pos_emb if learned else layer.linear_pos.weight, layer)
        x = x.to(layer.linear_pos.weight.dtype)
        fresh = copy.deepcopy(layer)
        assert_close(layer(x), fresh(x), rtol=0, atol=0)


def test_copies_and_pickles_keep_nothing():
    layer, x = made(RelPosSelfAttention), source(2, 6)
    with torch.no_grad():
        out = layer(x)
        size = len(pickle.dumps(made(RelPosSelfAttention)))
        # Two bytes more or less: which strings are one object differs.
        assert abs(len(pickle.dumps(layer)) - size) < 16
        assert torch.equal(pickle.loads(pickle.dumps(layer))(x), out)  # noqa: S301  our own
        assert torch.equal(copy.deepcopy(layer)(x), out)


def test_inference_mode_and_functional_parameters():
    layer, x = made(RelPosSelfAttention), source(2, 6)
    with torch.inference_mode():
        out = layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), out)
        parameters = {name: 2 * weight for name, weight in layer.named_parameters()}
        other = torch.func.functional_call(layer, parameters, (x,))
        layer.load_state_dict(parameters)
        assert torch.equal(layer(x), other)
    layer.train()(x).sum().backward()
    assert layer.linear_pos.weight.grad.isfinite().all()


def test_addresses_of_weights_are_not_handed_out_again():
    """A new weight at the address of the old one would look like it: the old one's memory stays."""
    layer, x = made(RelPosSelfAttention), source(2, 6)
    with torch.no_grad():
        layer(x)
        address = layer.linear_pos.weight.data_ptr()
        layer.linear_pos.weight = torch.nn.Parameter(2 * layer.linear_pos.weight)
        assert [w.data_ptr() for w in layer._projected._held.weights] == [address]
        assert torch.equal(layer(x), copy.deepcopy(layer)(x))


def test_weights_under_transformations():
    """Weights of torch.func's own kinds have neither an address nor a version."""
    layer, x = made(RelPosCausalSelfAttention, window=3), source(2)
    state = layer.default_initial_state(batch_dims=[2], dtype=x.dtype)
    stacked = {name: torch.stack([w, 2 * w]) for name, w in layer.named_parameters()}

    def run(parameters):
        arguments = (x, single_step_dim)
        return torch.func.functional_call(layer, parameters, arguments, {"state": state})[0]

    with torch.no_grad():
        both = torch.func.vmap(run)(stacked)
        for n in range(2):
            assert_close(both[n], run({name: w[n] for name, w in stacked.items()}))


def test_what_is_kept_under_autocast_stays_there():
    layer, x = made(RelPosSelfAttention, torch.float32), source(2, 6, dtype=torch.float32)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.float16):
            assert torch.equal(layer(x), copy.deepcopy(layer)(x))
        assert torch.equal(layer(x), copy.deepcopy(layer)(x))
