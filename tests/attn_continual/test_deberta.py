"""DeBERTa-v2's self-attention with random weights, as transformers computes it and as we do."""

import doctest

import pytest
import torch
from torch.testing import assert_close
from transformers import DebertaV2Config
from transformers.models.deberta_v2 import modeling_deberta_v2 as original

from attn_continual import deberta, log_bucket_positions, relative_attention_from_deberta

CASES = {
    "log buckets": {"position_buckets": 4},
    "clamped distances": {"max_relative_positions": 3},
    "shared projections": {"position_buckets": 4, "share_att_key": True},
    "c2p alone": {"position_buckets": 4, "pos_att_type": ["c2p"]},
    "p2c alone": {"position_buckets": 4, "pos_att_type": ["p2c"]},
    "norm of the table": {"position_buckets": 4, "norm_rel_ebd": "layer_norm"},
}
LENGTH = 11


def make_encoder(**settings):
    """Return an encoder of one layer with random weights, the norm's included."""
    torch.manual_seed(2)
    defaults = {
        "hidden_size": 12,
        "num_attention_heads": 3,
        "num_hidden_layers": 1,
        "intermediate_size": 8,
        "relative_attention": True,
        "max_relative_positions": 16,
        "pos_att_type": ["p2c", "c2p"],
    }
    encoder = original.DebertaV2Encoder(DebertaV2Config(**{**defaults, **settings})).double()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter)
    return encoder.eval()


def positions_of(attention):
    buckets, longest = attention.position_buckets, attention.max_relative_positions
    return log_bucket_positions(LENGTH, LENGTH, buckets, longest)


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_layer_equals_the_original(settings):
    encoder = make_encoder(**settings)
    attention, table = encoder.layer[0].attention.self, encoder.get_rel_embedding()
    x = torch.randn(2, LENGTH, 12, dtype=torch.float64)
    mask = torch.ones(2, LENGTH, LENGTH, dtype=torch.bool)
    mask[0, :, 7:] = False
    expected, _ = attention(
        x, mask[:, None], relative_pos=encoder.get_rel_pos(x), rel_embeddings=table
    )
    layer = relative_attention_from_deberta(attention, table)
    found, _ = layer(x, x, x, mask, positions_of(attention))
    assert not layer.training
    # The original takes its scale from float32.
    assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("buckets", "longest"), [(4, 16), (32, 128), (256, 512), (-1, -1)])
def test_positions_are_the_original_ones(buckets, longest):
    rows = torch.empty(1, 600, 1)
    expected = original.build_relative_position(rows, rows, buckets, longest)
    found = log_bucket_positions(600, 600, buckets, longest)
    assert_close(found[..., 0], expected, rtol=0, atol=0)


def test_weights_are_copies_and_the_table_stays_what_it_is():
    encoder = make_encoder(position_buckets=4)
    attention = encoder.layer[0].attention.self
    layer = relative_attention_from_deberta(attention, encoder.rel_embeddings.weight)
    assert "position_embedding" in dict(layer.named_parameters())
    before = layer.content_key_proj.weight.clone()
    with torch.no_grad():
        attention.key_proj.weight.zero_()
        encoder.rel_embeddings.weight.zero_()
    assert (layer.content_key_proj.weight == before).all()
    assert layer.position_embedding.any()
    frozen = relative_attention_from_deberta(attention, encoder.rel_embeddings.weight.detach())
    assert "position_embedding" in dict(frozen.named_buffers())


def test_what_cannot_be_taken_over_is_named():
    attention = make_encoder(position_buckets=4).layer[0].attention.self
    with pytest.raises(ValueError, match="expected rel_embeddings with 8 rows"):
        relative_attention_from_deberta(attention, torch.zeros(7, 12))
    with pytest.raises(TypeError, match=r"the attention\.self of a layer, got Linear"):
        relative_attention_from_deberta(torch.nn.Linear(2, 2), torch.zeros(8, 12))
    attention.relative_attention = False
    with pytest.raises(ValueError, match="expected relative_attention"):
        relative_attention_from_deberta(attention, torch.zeros(8, 12))
    with pytest.raises(ValueError, match="max_distance beyond half"):
        log_bucket_positions(4, 4, 8, 4)


def test_examples():
    assert doctest.testmod(deberta).failed == 0
