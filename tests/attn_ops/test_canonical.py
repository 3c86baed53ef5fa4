"""Canonical inputs are views in one layout; a mask's tensors are checked against them."""

import pytest
import torch

from attn_ops import LowerTriangularMask, memory_efficient_attention
from attn_ops._canonical import canonical, restore_layout, restore_lse_layout
from attn_ops._inputs import Inputs, checked
from attn_ops.fmha import attn_bias as masks


def rand(*shape):
    return torch.randn(shape)


Q4, K4, V4 = rand(2, 5, 4, 8), rand(2, 7, 4, 8), rand(2, 7, 4, 6)
Q5, K5, V5 = rand(2, 5, 2, 3, 8), rand(2, 7, 2, 3, 8), rand(2, 7, 2, 3, 6)


def views_of(query, key, value, attn_bias=None, **options):
    return canonical(checked(Inputs(query, key, value, attn_bias, **options)))


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


def test_keys_of_a_leaf_collapse_where_nothing_is_recorded():
    key, value = (x[:, :, :, :1].clone().requires_grad_() for x in (K5, V5))
    with torch.no_grad():
        views = views_of(Q5, key.expand(2, 7, 2, 3, -1), value.expand(2, 7, 2, 3, -1))
    assert views.key.shape == (2, 7, 2, 8)


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


@pytest.mark.parametrize("shape", [(2, 2, 3, 5, 7), (1, 1, 1, 5, 7)])
def test_bias_within_a_mask_is_viewed_like_a_plain_one(shape):
    bias = rand(*shape)
    for mask in (
        masks.LowerTriangularMaskWithTensorBias(bias),
        masks.LocalAttentionFromBottomRightMask(1, 1).add_bias(bias),
    ):
        spec = views_of(Q5, K5, V5, mask).mask
        assert spec.bias is not None
        assert spec.bias.shape == (shape[0], shape[1] * shape[2], 5, 7)
        assert spec.bias.data_ptr() == bias.data_ptr()
        assert spec.band == mask.mask_spec().band


Q1, K1, V1 = Q4[:1], K4[:1], V4[:1]
PACKED = masks.BlockDiagonalMask.from_seqlens([2, 3], [4, 3])
WRONG_MASKS = {
    "batch": ((Q4, K4, V4), PACKED, "Expected batch_size=1 when using block-diagonal bias, got 2"),
    "device": ((Q1, K1, V1), PACKED.to("meta"), "query lengths of attn_bias on query's device cpu"),
    "bias device": (
        (Q4, K4, V4),
        LowerTriangularMask().add_bias(rand(2, 4, 5, 7).to("meta")),
        "expected attn_bias on query's device cpu, got meta",
    ),
    "bias rank": (
        (Q4, K4, V4),
        LowerTriangularMask().add_bias(rand(5, 7)),
        "got [5, 7]; pass bias[None, None, :, :] if its axes are [Mq, Mkv]",
    ),
    "bias of padding": (
        (Q4, K4, V4),
        LowerTriangularMask().add_bias(rand(2, 7)),
        "got [2, 7]; pass bias[:, None, None, :] if its axes are [B, Mkv]",
    ),
    "bias without B": (
        (Q4, K4, V4),
        LowerTriangularMask().add_bias(rand(4, 1, 7)),
        "got [4, 1, 7]; pass bias[None, :, :, :] if its axes are [H, Mq, Mkv]",
    ),
    "bias dtype": (
        (Q4, K4, V4),
        LowerTriangularMask().add_bias(rand(2, 4, 5, 7).half()),
        "attn_bias of query's dtype torch.float32",
    ),
    "bias of integers": (
        (Q4, K4, V4),
        torch.ones(2, 1, 1, 7, dtype=torch.int64),
        "got torch.int64; pass attn_bias.bool() if it is 1 for a key to keep, or attn_bias.float()",
    ),
    "slopes": ((Q4, K4, V4), masks.AlibiBias(rand(3)), "slopes with one entry for each head"),
    "table": ((Q4, K4, V4), masks.RelativePositionBias(rand(2, 5)), "table with one entry for"),
    "table dtype": (
        (Q4, K4, V4),
        masks.RelativePositionBias(rand(4, 5).double()),
        "table of query's dtype",
    ),
}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("case", WRONG_MASKS)
def test_mask_that_does_not_fit_is_refused_by_name(case, requires_grad):
    (query, key, value), mask, message = WRONG_MASKS[case]
    with pytest.raises(ValueError, match="memory_efficient_attention: ") as raised:
        memory_efficient_attention(query.detach().requires_grad_(requires_grad), key, value, mask)
    assert message in str(raised.value)


def test_advice_on_a_bias_names_every_way_and_none_where_none_fits():
    square = rand(4, 4, 2, 8)
    with pytest.raises(ValueError, match="if its axes are") as raised:
        memory_efficient_attention(square, square, square, rand(4, 4))
    assert str(raised.value).endswith(
        "; pass bias[:, None, None, :] if its axes are [B, Mkv], or bias[None, None, :, :] if its "
        "axes are [Mq, Mkv]"
    )
    with pytest.raises(ValueError, match=r"got \[6, 9\]$"):
        memory_efficient_attention(square, square, square, rand(6, 9))


def test_queries_beyond_the_sequences_see_nothing():
    query = torch.cat([Q1, Q1], dim=1)
    mask = masks.BlockDiagonalMask.from_seqlens(torch.tensor([2, 3]), torch.tensor([4, 3]))
    out = memory_efficient_attention(query, K1, V1, mask)
    assert torch.equal(out[:, :5], memory_efficient_attention(Q1, K1, V1, PACKED))
    assert (out[:, 5:] == 0).all()


def test_autocast_casts_the_parameters_of_a_mask():
    mask = (
        LowerTriangularMask()
        .add_bias(rand(1, 1, 5, 7).half())
        .add_bias(masks.AlibiBias(rand(4).half()))
    )
    with torch.autocast("cpu"):
        out = memory_efficient_attention(Q4, K4, V4, mask, sink=rand(4).half())
    assert out.dtype == torch.bfloat16
