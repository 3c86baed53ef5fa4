"""Outputs plus the inputs that they belong to."""

import pytest
import torch
from torch.testing import assert_close

from attn_continual import Residual, RetroactiveMultiheadAttention, SingleOutputMultiheadAttention
from attn_continual.testing import verify_contract
from reference.continual.single_output import window_outputs

L, N, T, E = 4, 3, 11, 8


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(**options):
    torch.manual_seed(0)
    return SingleOutputMultiheadAttention(
        E, 2, sequence_len=L, dtype=torch.float64, **options
    ).eval()


@pytest.mark.parametrize("query_index", [-1, -2, 0, L - 1])
def test_the_input_of_the_query_is_added(query_index):
    attention = make(query_index=query_index)
    mha, x = attention.to_torch(), random(N, T, E)
    mha.batch_first = True
    queries = torch.stack([x[:, end - L : end][:, query_index] for end in range(L, T + 1)], 1)
    expected = window_outputs(mha, x, x, x, L, query_index) + queries
    residual = Residual(attention)
    assert_close(residual.forward_steps(x), expected, rtol=0, atol=1e-12)


def test_exactly_a_window_gives_one_output():
    """Where delay is taken for warm-up, one output is broadcast over several inputs."""
    residual, x = Residual(make()), random(N, L, E)
    assert residual.forward_steps(x, update_state=False).shape == (N, 1, E)
    outs = [residual.forward_step(row) for row in x.unbind(1)]
    assert outs[:-1] == [None] * (L - 1)
    assert outs[-1].shape == (N, E)


def test_contract_with_features_second():
    residual = Residual(make(query_index=-3, embed_dim_second=True))
    verify_contract(residual, random(N, E, T))


def test_masks_are_the_modules():
    attention, x = make(query_index=-2), random(N, T, E)
    padding = random(N, T, seed=1) > 1
    masks = {"key_padding_mask": padding, "attn_mask": random(L, L, seed=2)}
    expected = attention.forward_steps(x, pad_end=True, **masks) + x[:, L - 2 :]
    residual = Residual(attention)
    assert_close(residual.forward_steps(x, pad_end=True, **masks), expected, rtol=0, atol=1e-12)
    residual.clean_state()
    for t in range(T):
        masks["key_padding_mask"] = padding[:, t]
        out = residual.forward_step(x[:, t], **masks)
    assert_close(out, expected[:, -2], rtol=0, atol=1e-12)


def test_residuals_nest():
    verify_contract(Residual(Residual(make(query_index=-2)), num_features=E), random(N, T, E))


def test_forward_adds_the_whole_sequence():
    attention, x = make(single_output_forward=False), random(N, T, E)
    assert_close(Residual(attention)(x), attention(x)[0] + x)


def test_what_has_no_residual_is_refused():
    x = random(N, T, E)
    with pytest.raises(ValueError, match="shaped as its inputs"):
        Residual(make())(x)
    windows = RetroactiveMultiheadAttention(
        E, 2, sequence_len=L, batch_first=True, dtype=torch.float64
    )
    with pytest.raises(ValueError, match="shaped as its inputs"):
        Residual(windows).forward_step(x[:, 0])
    with pytest.raises(TypeError, match="expected a ContinualModule, got Linear"):
        Residual(torch.nn.Linear(E, E))
    with pytest.raises(ValueError, match="expected num_features"):
        Residual(Residual(make()))


def test_inputs_of_another_width_are_refused():
    module = SingleOutputMultiheadAttention(8, 2, sequence_len=3, query_index=0)
    residual = Residual(module, num_features=5)
    x = torch.randn(2, 6, 8)
    for call in (lambda: residual.forward_steps(x), lambda: residual.forward_step(x[:, 0])):
        with pytest.raises(ValueError, match="expected inputs of num_features=5, got 8"):
            call()
