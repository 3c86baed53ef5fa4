"""The projections and masks of torch's multi-head attention, one by one."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from attn_continual._projections import (
    project,
    torch_bias,
    torch_mask_by_head,
    torch_mask_row,
    torch_padding,
    torch_settings,
)

E, H, L, N = 6, 2, 4, 3


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def make(**options):
    mha = nn.MultiheadAttention(E, H, batch_first=True, dtype=torch.float64, **options)
    for seed, parameter in enumerate(mha.parameters()):
        parameter.data = random(*parameter.shape, seed=seed)
    return mha


def by_head(x, weight, bias):
    """Return x [N, T, features] times the rows of weight, head by head, [N, T, H, E // H]."""
    rows = x @ weight.T if bias is None else x @ weight.T + bias
    return torch.stack(rows.split(E // H, dim=-1), dim=2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", ["query", "query and key", "all"])
def test_packed_projections(bias, given):
    mha, x = make(bias=bias), [random(N, 5, E, seed=s) for s in (7, 8, 9)]
    query, key, value = {
        "query": (x[0], x[0], None),
        "query and key": (x[0], x[1], None),
        "all": x,
    }[given]
    weights = mha.in_proj_weight.split(E)
    biases = mha.in_proj_bias.split(E) if bias else (None,) * 3
    expected = zip((query, key, key if value is None else value), weights, biases, strict=True)
    for got, (rows, weight, offset) in zip(project(mha, query, key, value), expected, strict=True):
        assert_close(got, by_head(rows, weight, offset), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_projections_of_other_widths(bias):
    mha = make(kdim=3, vdim=5, bias=bias)
    inputs = [random(N, 5, width) for width in (E, 3, 5)]
    weights = (mha.q_proj_weight, mha.k_proj_weight, mha.v_proj_weight)
    biases = mha.in_proj_bias.split(E) if bias else (None,) * 3
    expected = zip(inputs, weights, biases, strict=True)
    for got, (rows, weight, offset) in zip(project(mha, *inputs), expected, strict=True):
        assert_close(got, by_head(rows, weight, offset), rtol=0, atol=1e-12)


def test_other_numbers_of_features_are_refused():
    with pytest.raises(ValueError, match=r"value: expected 6 features, got \[3, 5, 4\]"):
        project(make(), random(N, 5, E), random(N, 5, E), random(N, 5, 4))


def test_a_window_mask_has_streams_and_heads_apart():
    mask = random(N * H, L, L)
    got = torch_mask_by_head(mask, L, H)
    assert got.shape == (N, H, L, L)
    assert torch.equal(got[2, 1], mask[2 * H + 1])
    assert torch_mask_by_head(mask[0], L, H).shape == (1, 1, L, L)


@pytest.mark.parametrize("shape", [(L,), (L, L + 1), (3, L, L), (1, N * H, L, L)], ids=str)
def test_masks_of_another_shape_are_refused(shape):
    expected = r"attn_mask: expected \[4, 4\], that of all steps, or with N"
    with pytest.raises(ValueError, match=expected):
        torch_mask_by_head(torch.zeros(shape), L, H)


def test_the_row_of_a_bool_mask_adds_minus_infinity_where_it_hides():
    mask = torch.zeros(L, L, dtype=torch.bool)
    mask[1, 2] = True
    assert torch_mask_row(mask, 1, L, H).tolist() == [[[0, 0, -torch.inf, 0]]]
    assert torch_mask_row(mask, -2, L, H).tolist() == [[[0, 0, 0, 0]]]
    floats = random(N * H, L, L)
    assert torch.equal(torch_mask_row(floats, -1, L, H)[1, 1], floats[3, -1])


def test_padding_is_bool():
    padding = torch.tensor([[True, False]])
    assert torch_padding(None) is None
    assert torch_padding(padding) is padding
    assert torch_padding(padding[0], single=True).tolist() == [[True], [False]]
    with pytest.raises(ValueError, match=r"expected a bool tensor \[N, T\], True hiding a key"):
        torch_padding(padding.float())


def test_masks_of_both_kinds_hide_and_add_together():
    hidden, added = torch.zeros(L, L, dtype=torch.bool), random(N * H, L, L)
    hidden[1, 2] = True
    padding = torch.zeros(N, L, dtype=torch.bool)
    padding[2, 0] = True
    late = torch.zeros(N, L).masked_fill(padding, -torch.inf)
    assert torch_bias(None, None, L, H) is None
    for mask in (padding, late):
        bias = torch_bias(added, mask, L, H)
        assert torch.equal(bias[:2], added.view(N, H, L, L)[:2])
        assert bias[2, :, :, 0].tolist() == [[-torch.inf] * L] * H
    keep = torch_bias(hidden, padding, L, H)
    assert keep.shape == (N, 1, L, L)
    assert torch.equal(keep, ~(hidden | padding[:, None, None]))
    assert torch.equal(torch_bias(hidden, None, L, H), ~hidden[None, None])
    assert torch.equal(torch_bias(hidden, late, L, H) == 0, keep)


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False, "kdim": 3}, {"add_bias_kv": True, "add_zero_attn": True, "dropout": 0.5}],
    ids=str,
)
def test_settings_make_the_same_layer_again(options):
    mha = make(**options)
    again = nn.MultiheadAttention(**torch_settings(mha))
    again.load_state_dict(mha.state_dict(), strict=True)
    assert torch_settings(again) == torch_settings(mha)
