"""Canonical inputs are views in one layout; a mask's tensors are checked against them."""

import pytest
import torch

from attn_ops import LowerTriangularMask
from attn_ops._canonical import canonical, restore_layout, restore_lse_layout
from attn_ops._inputs import Inputs, check


def rand(*shape):
    return torch.randn(shape)


Q4, K4, V4 = rand(2, 5, 4, 8), rand(2, 7, 4, 8), rand(2, 7, 4, 6)
Q5, K5, V5 = rand(2, 5, 2, 3, 8), rand(2, 7, 2, 3, 8), rand(2, 7, 2, 3, 6)


def views_of(query, key, value, attn_bias=None, **options):
    inputs = Inputs(query, key, value, attn_bias, **options)
    check(inputs)
    return canonical(inputs)


def test_4d_inputs_pass_through():
    views = views_of(Q4, K4, V4, LowerTriangularMask())
    assert views.query is Q4
    assert views.key is K4
    assert views.value is V4
    assert views.mask.bias is None
    assert views.mask.band.right == 0


def test_3d_inputs_get_one_head():
    views = views_of(Q4[:, :, 0], K4[:, :, 0], V4[:, :, 0], rand(2, 5, 7))
    assert views.query.shape == (2, 5, 1, 8)
    assert views.mask.bias is not None
    assert views.mask.bias.shape == (2, 1, 5, 7)


def test_keys_expanded_over_heads_collapse_to_their_groups_without_a_copy():
    key, value = (x[:, :, :, :1].expand(2, 7, 2, 3, -1) for x in (K5, V5))
    views = views_of(Q5, key, value)
    assert views.query.shape == (2, 5, 6, 8)
    assert views.key.shape == (2, 7, 2, 8)
    assert views.value.shape == (2, 7, 2, 6)
    for view, original in ((views.query, Q5), (views.key, K5), (views.value, V5)):
        assert view.data_ptr() == original.data_ptr()
    separate = canonical(Inputs(Q5, key, value), merge_repeats=False)
    assert separate.key.shape == (2, 7, 6, 8)


def test_keys_of_their_own_become_all_heads_without_a_copy():
    views = views_of(Q5, K5, V5)
    assert views.key.shape == (2, 7, 6, 8)
    assert views.key.data_ptr() == K5.data_ptr()


def test_bias_that_repeats_is_narrowed_without_a_copy():
    bias = rand(4, 1, 7)
    view = views_of(Q4, K4, V4, bias.expand(2, 4, 5, 7)).mask.bias
    assert view is not None
    assert view.shape == (1, 4, 1, 7)
    assert view.data_ptr() == bias.data_ptr()
    for shape in ((1, 1, 1, 5, 7), (2, 2, 3, 5, 7)):
        bias = rand(*shape)
        view = views_of(Q5, K5, V5, bias).mask.bias
        assert view is not None
        assert view.shape == (shape[0], shape[1] * shape[2], 5, 7)
        assert view.data_ptr() == bias.data_ptr()


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_sink_of_grouped_heads_is_viewed_per_query_head(shape):
    sink = rand(*shape)
    view = views_of(Q5, K5, V5, sink=sink).mask.sink
    assert view is not None
    assert view.shape == (6,)
    assert view.data_ptr() == sink.data_ptr()


def test_sink_and_softcap_reach_the_mask():
    sink = rand(4)
    mask = views_of(Q4, K4, V4, sink=sink, softcap=30).mask
    assert mask.sink is sink
    assert mask.softcap == 30
    assert views_of(Q4, K4, V4).mask.softcap == 0.0


def test_results_return_to_the_layout_of_the_query():
    out, lse = rand(2, 5, 6, 4), rand(2, 6, 5)
    assert restore_layout(out, Q5).shape == (2, 5, 2, 3, 4)
    assert restore_layout(out[:, :, :1], Q4[:, :, 0]).shape == (2, 5, 4)
    assert restore_layout(out, Q4) is out
    assert restore_lse_layout(lse, Q5).shape == (2, 2, 3, 5)
    assert restore_lse_layout(lse, Q4) is lse
