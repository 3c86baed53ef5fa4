"""One graph serves a whole stream, before its window is full and after."""

import pytest
import torch
from torch.testing import assert_close

from attn_continual.returnn import (
    CausalSelfAttention,
    RelPosCausalSelfAttention,
    RelPosSelfAttention,
    single_step_dim,
)
from returnn_layers import made, source


@pytest.mark.parametrize("cls", [CausalSelfAttention, RelPosCausalSelfAttention])
def test_steps_are_one_graph(cls):
    layer, x = made(cls, window=3), source(2, 6)
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    step = torch.compile(
        lambda row, state: layer(row, single_step_dim, state=state),
        fullgraph=True,
        backend=backend,
    )
    state, outs = layer.default_initial_state(batch_dims=[2], dtype=x.dtype), []
    with torch.no_grad():
        for row in x.unbind(1):
            out, state = step(row, state)
            outs.append(out)
        assert_close(torch.stack(outs, 1), layer(x)[0])
    assert len(graphs) == 1


def test_gradients_in_a_graph():
    layer = made(RelPosSelfAttention)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (6, 4):
        x, lengths = source(2, length).requires_grad_(), torch.tensor([length, 2])
        outs = [call(x, lengths=lengths) for call in (compiled, layer)]
        assert_close(*outs)
        assert_close(*(torch.autograd.grad(out.sum(), [x, *layer.parameters()]) for out in outs))


@pytest.mark.parametrize("cls", [CausalSelfAttention, RelPosCausalSelfAttention])
def test_steps_are_exported(cls):
    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = made(cls, window=3)

        def forward(self, row, k_accum, v_accum, position):
            state = state_type(k_accum, v_accum, position)
            return self.attention(row, single_step_dim, state=state)

    step, x = Step(), source(2, 5)
    state = step.attention.default_initial_state(batch_dims=[2], dtype=x.dtype)
    state_type, outs = type(state), []
    with torch.no_grad():
        exported = torch.export.export(step, (x[:, 0], *state)).module()
        for row in x.unbind(1):
            out, state = exported(row, *state)
            outs.append(out)
        assert_close(torch.stack(outs, 1), step.attention(x)[0])
