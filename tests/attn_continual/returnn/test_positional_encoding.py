"""The encodings' exact layouts, in both generations of their signatures."""

import pytest
import torch
from torch.testing import assert_close

from attn_continual.returnn import (
    Dim,
    LearnedRelativePositionalEncoding,
    convert_to_tensor,
    relative_positional_encoding,
    single_step_dim,
    sinusoidal_positional_encoding,
)
from reference.continual.returnn import absolute_encoding, relative_encoding


def relative_rows(distances, features):
    return torch.tensor(
        [relative_encoding(r, features) for r in distances], dtype=torch.float64
    ).view(-1, features)


def test_relative_rows_ascend_from_the_last_query_to_the_last_key():
    table, count = relative_positional_encoding(5, 6, dtype="float64")
    assert count == 9
    assert_close(table, relative_rows(range(-4, 5), 6), rtol=0, atol=1e-14)
    assert_close(table[4], torch.tensor([0.0, 0, 0, 1, 1, 1], dtype=torch.float64))  # sin | cos
    sizes = {"query_spatial_dim": 3, "key_value_spatial_dim": 5, "feat_dim": 6}
    table, count = relative_positional_encoding(**sizes, query_offset=2, dtype=torch.float64)
    assert count == 7
    assert_close(table, relative_rows(range(-4, 3), 6), rtol=0, atol=1e-14)


def test_relative_rows_of_a_single_step():
    sizes = {"query_spatial_dim": single_step_dim, "key_value_spatial_dim": 4, "feat_dim": 2}
    table, count = relative_positional_encoding(**sizes, dtype="float64")
    assert count == 4
    assert_close(table, relative_rows(range(-3, 1), 2), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="no query_offset for a single step"):
        relative_positional_encoding(**sizes, query_offset=1)


def test_offsets_of_streams():
    offsets = torch.tensor([[0, 3], [1, 7]])
    sizes = {"query_spatial_dim": 2, "key_value_spatial_dim": 3, "feat_dim": 4}
    table, _ = relative_positional_encoding(**sizes, query_offset=offsets, dtype="float64")
    assert table.shape == (2, 2, 4, 4)
    for n, offset in enumerate(offsets.flatten().tolist()):
        rows = relative_rows(range(-1 - offset, 3 - offset), 4)
        assert_close(table.flatten(0, 1)[n], rows, rtol=0, atol=1e-14)


def test_float32_rows_keep_their_digits_far_away():
    table, _ = relative_positional_encoding(20_001, 8)
    assert table.dtype == torch.float32
    assert_close(table[:3].double(), relative_rows(range(-20_000, -19_997), 8), rtol=0, atol=1e-7)


def test_dims_of_relative_rows():
    time, features = Dim(5, name="time"), Dim(6, name="features")
    table, spatial = relative_positional_encoding(time, features)
    assert table.dims == (spatial, features)
    assert spatial.dimension == 9
    assert table.feature_dim is features
    assert torch.equal(table.raw_tensor, relative_positional_encoding(5, 6)[0])
    newer = {"key_value_spatial_dim": time, "feat_dim": 6}
    table, spatial = relative_positional_encoding(**newer, query_spatial_dim=single_step_dim)
    assert spatial is time
    batch = Dim(2)
    offset = convert_to_tensor(torch.tensor([0, 1]), dims=[batch])
    table, spatial = relative_positional_encoding(
        **newer, query_spatial_dim=time, query_offset=offset
    )
    assert table.dims[:2] == (batch, spatial)


@pytest.mark.parametrize("encode", [relative_positional_encoding, None], ids=["relative", "sinus"])
def test_features_are_even(encode):
    def run(features):
        if encode is None:
            return sinusoidal_positional_encoding(spatial_dim=3, feat_dim=features)
        return encode(3, features)[0]

    with pytest.raises(ValueError, match=r"an even number of features.*got 5"):
        run(5)
    assert run(2).isfinite().all()


def test_what_a_call_must_give():
    with pytest.raises(TypeError, match="spatial_dim, or query_spatial_dim and key_value_spatial"):
        relative_positional_encoding(feat_dim=4)
    with pytest.raises(TypeError, match="got 3, 3 and 3"):
        relative_positional_encoding(3, 4, query_spatial_dim=3, key_value_spatial_dim=3)
    with pytest.raises(ValueError, match=r"feat_dim.*got None"):
        relative_positional_encoding(3)
    with pytest.raises(ValueError, match="an offset, the position of the single step"):
        sinusoidal_positional_encoding(spatial_dim=single_step_dim, feat_dim=4)
    for dtype in ("decimal", "int32", torch.int64):
        with pytest.raises(ValueError, match="expected dtype, floating point, got"):
            relative_positional_encoding(3, 4, dtype=dtype)
        with pytest.raises(ValueError, match="expected dtype, floating point, got"):
            LearnedRelativePositionalEncoding(4, dtype=dtype)


def test_distances_of_no_queries_and_no_keys():
    table, count = relative_positional_encoding(0, 4)
    assert (table.shape, count) == ((0, 4), 0)
    with pytest.raises(ValueError, match="expected 0 queries and keys or more, got -3"):
        relative_positional_encoding(-3, 4)


@pytest.mark.parametrize("features", [2, 4, 10])
@pytest.mark.parametrize("base", [1e4, 100.0])
def test_sinusoids(features, base):
    options = {"feat_dim": features, "base": base, "dtype": "float64"}
    expected = torch.tensor(
        [absolute_encoding(position, features, base) for position in range(10)],
        dtype=torch.float64,
    )
    table = sinusoidal_positional_encoding(spatial_dim=7, **options)
    assert_close(table, expected[:7], rtol=0, atol=1e-14)
    table = sinusoidal_positional_encoding(spatial_dim=4, offset=3, **options)
    assert_close(table, expected[3:7], rtol=0, atol=1e-14)
    offsets = torch.tensor([[1, 0], [6, 2]])
    table = sinusoidal_positional_encoding(spatial_dim=2, offset=offsets, **options)
    assert_close(table, expected[offsets[..., None] + torch.arange(2)], rtol=0, atol=1e-14)
    table = sinusoidal_positional_encoding(spatial_dim=single_step_dim, offset=offsets, **options)
    assert_close(table, expected[offsets], rtol=0, atol=1e-14)


def test_dims_of_sinusoids():
    time, features, batch = Dim(5), Dim(4), Dim(2)
    table = sinusoidal_positional_encoding(spatial_dim=time, feat_dim=features)
    assert table.dims == (time, features)
    offset = convert_to_tensor(torch.tensor([3, 1]), dims=[batch])
    table = sinusoidal_positional_encoding(
        spatial_dim=single_step_dim, feat_dim=features, offset=offset
    )
    assert table.dims == (batch, features)


def learned(**options):
    encoding = LearnedRelativePositionalEncoding(4, **options)
    assert not encoding.pos_emb.any()
    with torch.no_grad():
        encoding.pos_emb.copy_(torch.arange(encoding.pos_emb.numel()).view(-1, 4))
    return encoding


def test_learned_rows_clip():
    encoding = learned(clipping=2, dtype="float64")
    assert encoding.pos_emb.shape == (5, 4)
    assert encoding.pos_emb.dtype == torch.float64
    rows, count = encoding(4)
    assert count == 7
    assert torch.equal(rows, encoding.pos_emb[[0, 0, 1, 2, 3, 4, 4]])
    rows, _ = encoding(query_spatial_dim=2, key_value_spatial_dim=4, query_offset=2)
    assert torch.equal(rows, encoding.pos_emb[[0, 0, 1, 2, 3]])
    rows, _ = encoding(query_spatial_dim=single_step_dim, key_value_spatial_dim=4)
    assert torch.equal(rows, encoding.pos_emb[[0, 0, 1, 2]])


def test_learned_causal_rows_end_at_zero():
    encoding = learned(clipping=2, causal=True)
    assert encoding.pos_emb.shape == (3, 4)
    assert torch.equal(encoding(3)[0], encoding.pos_emb[[0, 1, 2, 2, 2]])


def test_learned_full_matrix():
    encoding = learned(clipping=2)
    matrix = encoding.full_matrix(query_spatial_dim=2, key_value_spatial_dim=4)
    assert torch.equal(matrix, encoding.pos_emb[torch.tensor([[2, 3, 4, 4], [1, 2, 3, 4]])])
    shifted = encoding.full_matrix(query_spatial_dim=2, key_value_spatial_dim=4, query_offset=2)
    assert torch.equal(shifted, encoding.pos_emb[torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2]])])
    step = encoding.full_matrix(query_spatial_dim=single_step_dim, key_value_spatial_dim=4)
    assert torch.equal(step, shifted[1])
    queries, keys = Dim(2), Dim(4)
    tagged = encoding.full_matrix(query_spatial_dim=queries, key_value_spatial_dim=keys)
    assert tagged.dims == (queries, keys, encoding.feat_dim)


def test_learned_dims_and_refusals():
    features, time = Dim(4), Dim(3)
    encoding = LearnedRelativePositionalEncoding(features, clipping=2)
    rows, spatial = encoding(time)
    assert rows.dims == (spatial, features)
    with pytest.raises(ValueError, match="clipping of 0 or more"):
        LearnedRelativePositionalEncoding(4, clipping=-1)
