"""Cross-attention against its formula, pair by pair."""

import pytest
import torch
from torch.testing import assert_close

from attn_continual.returnn import CrossAttention
from reference.continual import returnn as reference

ENCODER, QUERY, OUT = 7, 6, 5


def made():
    torch.manual_seed(0)
    sizes = {"key_dim_total": 8, "value_dim_total": 10, "num_heads": 2}
    layer = CrossAttention(ENCODER, QUERY, OUT, **sizes).double().eval()
    for name, weight in layer.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    return layer


def rows(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_output_and_gradients():
    layer, x, encoder = made(), rows(3, 4, QUERY), rows(3, 5, ENCODER, seed=1)
    lengths = [5, 2, 0]
    ours = layer(x, layer.transform_encoder(encoder, axis=1, lengths=torch.tensor(lengths)))
    theirs = torch.stack(
        [
            reference.cross_attention(layer, x[n], encoder[n], length)
            for n, length in enumerate(lengths)
        ]
    )
    assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert_close(ours[2], layer.proj.bias.expand(4, OUT))  # nothing to attend to
    weight, inputs = rows(3, 4, OUT, seed=2), [x, encoder, *layer.parameters()]
    for mine, right in zip(
        torch.autograd.grad(ours, inputs, weight),
        torch.autograd.grad(theirs, inputs, weight),
        strict=True,
    ):
        assert_close(mine, right, rtol=0, atol=1e-11)


def test_steps_masks_and_layouts():
    layer, x, encoder = made(), rows(2, 3, 4, QUERY), rows(2, 3, 5, ENCODER, seed=1)
    mask = rows(2, 3, 5, seed=3) > 0
    state = layer.transform_encoder(encoder, mask=mask)
    whole = layer(x, state)
    for t in range(4):
        assert_close(layer(x[:, :, t], state), whole[:, :, t])
    moved = layer.transform_encoder(encoder.movedim(2, 0), axis=0, mask=mask)
    assert_close(layer(x, moved), whole)
    spoiled = torch.where(mask[..., None], encoder, torch.nan)
    assert_close(layer(x, layer.transform_encoder(spoiled, mask=mask)), whole)


def test_parameters_and_initialisation():
    torch.manual_seed(0)
    sizes = {"key_dim_total": 60, "value_dim_total": 40, "num_heads": 4}
    layer = CrossAttention(80, 70, 50, **sizes)
    assert layer.kv.weight.shape == (80, 100)
    assert layer.q.weight.shape == (70, 60)
    for weight, scale in (
        (layer.kv.weight, 3 / 4),
        (layer.q.weight, 1 / 2),
        (layer.proj.weight, 1),
    ):
        bound = (6 * scale / sum(weight.shape)) ** 0.5
        assert 0.95 * bound < weight.abs().max() <= bound
    assert not any(part.bias.any() for part in (layer.kv, layer.q, layer.proj))
    bare = CrossAttention(8, 8, None, key_dim_total=8, value_dim_total=4, num_heads=2)
    assert bare.out_dim.dimension == 4
    assert "proj.weight" not in bare.state_dict()


def test_what_does_not_fit_is_refused():
    layer = made()
    with pytest.raises(ValueError, match=r"CrossAttention: expected source \[..., 7\]"):
        layer.transform_encoder(rows(2, 3, 6))
    encoder = layer.transform_encoder(rows(2, 3, 7))
    with pytest.raises(ValueError, match=r"projection: expected 6 features, got \[2, 4, 5\]"):
        layer(rows(2, 4, 5), encoder)
    with pytest.raises(ValueError, match=r"projection: expected torch.float64, as the weights"):
        layer(rows(2, 4, 6).half(), encoder)
    with pytest.raises(ValueError, match="batch axes of query, keys and values"):
        layer(rows(3, 4, 6), encoder)
    with pytest.raises(ValueError, match="to be a multiple"):
        CrossAttention(8, 8, 8, key_dim_total=8, value_dim_total=8, num_heads=3)
