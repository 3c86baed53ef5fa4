"""Dot attention of torch tensors against its formula, row by row."""

import math

import pytest
import torch
from torch.testing import assert_close

from attn_continual.returnn import AttentionFunc, Dim, convert_to_tensor, dot_attention
from reference.continual.returnn import attend


def rows(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def expected(q, k, v, sees, scale=None):
    """Attention of one batch element: q [Mq, K], k [Mkv, K], v [Mkv, Kv]."""
    scale = 1 / math.sqrt(q.shape[1]) if scale is None else scale
    scores = ({j: scale * q[i] @ k[j] for j in range(len(k)) if sees(i, j)} for i in range(len(q)))
    return torch.stack([attend(row, v) for row in scores])


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_output_and_gradients(batch):
    q, k, v = (rows(*batch, m, f).requires_grad_() for m, f in ((4, 6), (5, 6), (5, 3)))
    ours = dot_attention(q, k, v)
    flat = zip(*(x.reshape(-1, *x.shape[-2:]) for x in (q, k, v)), strict=True)
    theirs = torch.stack([expected(*x, lambda _i, _j: True) for x in flat]).view(*batch, 4, 3)
    assert_close(ours, theirs, rtol=0, atol=1e-12)
    weight = rows(*ours.shape, seed=1)
    for mine, right in zip(
        torch.autograd.grad(ours, (q, k, v), weight),
        torch.autograd.grad(theirs, (q, k, v), weight),
        strict=True,
    ):
        assert_close(mine, right, rtol=0, atol=1e-12)


def test_masks_lengths_and_causality():
    q, k, v = rows(2, 4, 6), rows(2, 4, 6, seed=1), rows(2, 4, 3, seed=2)
    lengths, mask = torch.tensor([3, 0]), rows(4, 4, seed=3) > 0
    ours = dot_attention(q, k, v, lengths=lengths, mask=mask, scale=0.3)
    right = expected(q[0], k[0], v[0], lambda i, j: j < 3 and mask[i, j], 0.3)
    assert_close(ours[0], right, rtol=0, atol=1e-12)
    assert not ours[1].any()
    ours = dot_attention(q, k, v, causal_query_spatial_dim=-2, lengths=torch.tensor([4, 2]))
    for n, length in enumerate((4, 2)):
        right = expected(q[n], k[n], v[n], lambda i, j, m=length: j <= i and j < m)
        assert_close(ours[n], right, rtol=0, atol=1e-12)


def test_axes_and_broadcasting():
    """Keys [batch, time, heads, K] along axis 1, values that heads share, and one query."""
    q, k, v = rows(2, 4, 3, 6), rows(2, 5, 3, 6, seed=1), rows(2, 5, 1, 7, seed=2)
    ours = dot_attention(q, k, v, axis=1)
    assert ours.shape == (2, 4, 3, 7)
    for h in range(3):
        right = expected(q[1, :, h], k[1, :, h], v[1, :, 0], lambda _i, _j: True)
        assert_close(ours[1, :, h], right, rtol=0, atol=1e-12)
    single = dot_attention(q[:, 2], k, v, axis=1)
    assert_close(single, ours[:, 2], rtol=0, atol=1e-12)


def test_dropout():
    q, k, v = rows(1, 400, 2), rows(1, 4, 2, seed=1) * 0, torch.eye(4, dtype=torch.float64)[None]
    torch.manual_seed(0)
    weights = dot_attention(q, k, v, att_dropout=0.5)[0]
    assert set(weights.unique().tolist()) == {0.0, 0.5}
    assert 0.4 < (weights == 0).double().mean() < 0.6
    weights = dot_attention(q, k, v, att_dropout=0.5, att_dropout_broadcast=True)[0]
    assert torch.equal(weights, weights[:1].expand(400, 4))


def test_it_is_an_attention_func():
    function: AttentionFunc = dot_attention
    assert function(rows(2, 3), rows(4, 3), rows(4, 5), key_dim=-1, axis=-2).shape == (2, 5)


def test_what_does_not_fit_is_refused():
    q, k, v = rows(2, 4, 6), rows(2, 5, 6), rows(2, 5, 3)
    with pytest.raises(ValueError, match="expected axis, an int, and not the last"):
        dot_attention(q, k, v, axis=-1)
    with pytest.raises(ValueError, match="key_dim=-1"):
        dot_attention(q, k, v, key_dim=0)
    with pytest.raises(ValueError, match="as many queries as keys with causal"):
        dot_attention(q, k, v, causal_query_spatial_dim=-2)
    with pytest.raises(ValueError, match="queries as wide as keys and as many values as keys"):
        dot_attention(q[..., :3], k, v)
    with pytest.raises(ValueError, match="values with as many axes as keys"):
        dot_attention(q, k, v[0])
    with pytest.raises(ValueError, match=r"mask, bool, True keeping a key, got torch.float64"):
        dot_attention(q, k, v, mask=torch.ones(4, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"lengths and mask, to broadcast to \[2, 4, 5\]"):
        dot_attention(q, k, v, mask=torch.ones(4, 4) > 0)
    with pytest.raises(ValueError, match=r"lengths and mask, to broadcast to \[2, 4, 5\]"):
        dot_attention(q, k, v, lengths=torch.tensor([3, 2, 1]))
    with pytest.raises(ValueError, match=r"expected lengths, int, got torch\.float32"):
        dot_attention(q, k, v, lengths=torch.tensor([3.0, 2.0]))
    with pytest.raises(ValueError, match=r"batch axes of query, .* got \[2\], \[3\], \[3\]"):
        dot_attention(q, k[[0, 0, 1]], v[[0, 0, 1]])
    dims = [Dim(2), Dim(5), Dim(6)]
    with pytest.raises(TypeError, match="query, keys and values of one kind"):
        dot_attention(q, convert_to_tensor(k, dims=dims), v)
    with pytest.raises(TypeError, match="tagged keys and values, and Dims"):
        dot_attention(convert_to_tensor(k, dims=dims), k, v, key_dim=dims[2], axis=dims[1])
    tagged = convert_to_tensor(k, dims=dims)
    with pytest.raises(TypeError, match="no lengths and no mask with tagged tensors"):
        dot_attention(
            tagged, tagged, tagged, key_dim=dims[2], axis=dims[1], lengths=torch.tensor(3)
        )


@pytest.mark.parametrize("batch", [(0,), (2, 0), (0, 2)])
@pytest.mark.parametrize("causal", [None, -2])
def test_empty_batches_give_nothing(batch, causal):
    x = torch.randn(*batch, 3, 4, requires_grad=True)
    keep = {
        "lengths": torch.ones(batch, dtype=torch.int64),
        "mask": torch.ones(3, 3, dtype=torch.bool),
    }
    for masks in ({}, keep):
        out = dot_attention(x, x, x[..., :2], causal_query_spatial_dim=causal, **masks)
        assert out.shape == (*batch, 3, 2)
        out.sum().backward()


@pytest.mark.parametrize("att_dropout", [0.0, 0.5])
def test_rows_that_are_not_there_may_have_any_strides(att_dropout):
    queries, keys, values = (rows(2, 3, m, 2 * k)[..., ::2] for m, k in ((4, 6), (5, 6), (5, 3)))
    out = dot_attention(queries[:, :, :0], keys, values, att_dropout=att_dropout)
    assert out.shape == (2, 3, 0, 3)
    out = dot_attention(queries, keys[:, :, :0], values[:, :, :0], att_dropout=att_dropout)
    assert torch.equal(out, torch.zeros(2, 3, 4, 3, dtype=torch.float64))
