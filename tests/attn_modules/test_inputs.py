"""How layouts, masks and key padding become one set of views."""

import re

import pytest
import torch

from attn_modules import Attention, AttentionMask, ScaledDotProduct, build_attention
from attn_modules._inputs import as_keep, read_inputs
from attn_ops.fmha.attn_bias import BlockSparseMask
from reference.modules.dense_attention import attend

B, H, MQ, MKV, K, KV = 2, 3, 4, 5, 8, 6


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(0)
    shapes = (B, H, MQ, K), (B, H, MKV, K), (B, H, MKV, KV)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def mask_shapes():
    shapes = [(MQ, MKV), (1, MKV), (B, MQ, MKV), (1, MQ, MKV), (B * H, MQ, MKV)]
    shapes += [(B, H, MQ, MKV), (B, 1, MQ, MKV), (1, H, MQ, MKV), (1, 1, 1, MKV), (B, H, MQ, 1)]
    return [pytest.param(shape, id="x".join(map(str, shape))) for shape in shapes]


def by_batch_and_head(mask):
    """Return a mask of any accepted shape as [B or 1, H or 1, Mq or 1, Mkv or 1]."""
    if mask.dim() == 4:
        return mask
    if mask.dim() == 2:
        return mask[None, None]
    return mask.view(B, H, *mask.shape[1:]) if len(mask) == B * H else mask.unsqueeze(1)


@pytest.mark.parametrize("padded_by_head", [None, False, True])
@pytest.mark.parametrize("kind", ["bool", "additive", "object"])
@pytest.mark.parametrize("is_folded", [False, True])
@pytest.mark.parametrize("shape", mask_shapes())
def test_every_mask_meets_its_batch_element_and_head(qkv, shape, kind, is_folded, padded_by_head):
    generator = torch.Generator().manual_seed(1)
    keep = torch.rand(shape, generator=generator) > 0.3
    additive = torch.randn(shape, generator=generator).masked_fill(~keep, -torch.inf)
    padding = torch.rand((B, H, MKV), generator=generator) > 0.3
    if padded_by_head is False:
        padding = padding[:, :1]
    mask = {"bool": keep, "additive": additive, "object": AttentionMask(additive)}[kind]
    bias = None if kind == "bool" else by_batch_and_head(additive)
    seen = by_batch_and_head(keep)
    if padded_by_head is not None:
        seen = seen & padding[:, :, None]
    expected = attend(*qkv, seen, bias)
    q, k, v = (x.flatten(0, 1) if is_folded else x for x in qkv)
    key_padding = None if padded_by_head is None else padding.flatten(0, 1)
    out = ScaledDotProduct()(q, k, v, mask, key_padding)
    torch.testing.assert_close(out, expected.flatten(0, 1) if is_folded else expected)


def test_larger_masks_are_cropped(qkv):
    mask, padding = torch.randn(MQ + 2, MKV + 3), torch.rand(B, MKV + 1) > 0.3
    expected = attend(*qkv, padding[:, None, None, :MKV], mask[:MQ, :MKV])
    torch.testing.assert_close(ScaledDotProduct()(*qkv, mask, padding), expected)


def test_additive_key_padding_keeps_zeros(qkv):
    padding = torch.zeros(B, MKV)
    padding[0, 3:], padding[1, 1:] = -torch.inf, torch.finfo(torch.float32).min
    expected = attend(*qkv, (padding == 0)[:, None, None])
    torch.testing.assert_close(ScaledDotProduct()(*qkv, key_padding_mask=padding), expected)


def test_views_copy_nothing(qkv):
    inputs = read_inputs(ScaledDotProduct(), *qkv)
    assert inputs.q.shape == (B, MQ, H, K)
    assert inputs.v.data_ptr() == qkv[2].data_ptr()
    folded = read_inputs(ScaledDotProduct(), *(x.flatten(0, 1) for x in qkv))
    assert folded.q.shape == (B * H, MQ, 1, K)
    assert folded.restore(folded.q).shape == (B * H, MQ, K)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((MQ - 1, MKV), "expected att_mask for"),
        ((MQ, MKV - 1), "expected att_mask for"),
        ((B + 2, MQ, MKV), "expected att_mask for"),
        ((B, H + 1, MQ, MKV), "expected att_mask for"),
        ((MKV,), "expected att_mask, bool or floating-point"),
    ],
)
@pytest.mark.parametrize("is_folded", [False, True])
def test_masks_that_do_not_fit_are_refused(qkv, shape, message, is_folded):
    q, k, v = (x.flatten(0, 1) if is_folded else x for x in qkv)
    with pytest.raises(ValueError, match=message):
        ScaledDotProduct()(q, k, v, torch.zeros(shape))


def test_paddings_that_do_not_fit_are_refused(qkv):
    for shape in ((B, MKV - 1), (B + 2, MKV), (MKV,)):
        with pytest.raises(ValueError, match="expected key_padding_mask"):
            ScaledDotProduct()(*qkv, key_padding_mask=torch.ones(shape, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"got torch.int64 .*, pass mask.bool\(\)"):
        ScaledDotProduct()(*qkv, key_padding_mask=torch.ones(B, MKV, dtype=torch.int64))


@pytest.mark.parametrize("number", [1.0, -1e4, torch.inf, torch.nan])
def test_additive_paddings_hold_no_other_numbers(qkv, number):
    padding = torch.zeros(B, MKV)
    padding[1, 2] = number
    with pytest.raises(ValueError, match=rf"got {number:g} in it; .*, pass mask.bool\(\)"):
        ScaledDotProduct()(*qkv, key_padding_mask=padding)
    with pytest.raises(ValueError, match="MultiHeadDispatch: expected an additive"):
        as_keep("MultiHeadDispatch", padding)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_lowest_of_a_dtype_pads(dtype):
    padding = torch.tensor([[0.0, torch.finfo(dtype).min, -torch.inf, -0.0]], dtype=dtype)
    assert as_keep("here", padding).tolist() == [[True, False, False, True]]


def test_graphs_look_at_no_values():
    padding = torch.ones(B, MKV)
    kept = torch.compile(as_keep, fullgraph=True, backend="eager")("here", padding)
    assert kept.all()
    assert as_keep("here", padding.to("meta")).shape == (B, MKV)


def test_what_does_not_fit_is_named_by_the_shape_that_was_given(qkv):
    mask, padding = torch.zeros(B * H + 1, MQ, MKV), torch.zeros(B, MKV - 1)
    for masks, shape in (
        ({"att_mask": mask}, mask.shape),
        ({"key_padding_mask": padding}, padding.shape),
    ):
        with pytest.raises(ValueError, match=re.escape(f"got {list(shape)}")):
            ScaledDotProduct()(*qkv, **masks)


def test_masks_of_kernels_are_refused(qkv):
    blocks = BlockSparseMask.from_pattern(torch.ones(2, 2, dtype=torch.bool), 4)
    with pytest.raises(TypeError, match=r"got a BlockSparseMask; .*mask_to_layout makes"):
        ScaledDotProduct()(*qkv, blocks)


def test_a_padding_for_all_keys_has_an_extent_for_each(qkv):
    for keep in (True, False):
        padding = torch.full((B, 1), keep)
        inputs = read_inputs(ScaledDotProduct(), *qkv, key_padding_mask=padding)
        assert torch.equal(inputs.keep, padding[:, None, None].expand(B, 1, 1, MKV))


@pytest.mark.parametrize("is_folded", [False, True])
@pytest.mark.parametrize("emptied", ["batch", "queries", "keys"])
def test_masks_go_with_nothing_at_all(qkv, emptied, is_folded):
    q, k, v = qkv
    q = {"batch": q[:0], "queries": q[..., :0, :], "keys": q}[emptied]
    k, v = ({"batch": x[:0], "queries": x, "keys": x[..., :0, :]}[emptied] for x in (k, v))
    batch = q.shape[0]
    q, k, v = (x.flatten(0, 1) if is_folded else x for x in (q, k, v))
    mask, padding = torch.zeros(MQ, MKV), torch.ones(batch, MKV, dtype=torch.bool)
    inputs = read_inputs(ScaledDotProduct(), q, k, v, mask, padding)
    out = ScaledDotProduct()(q, k, v, mask, padding)
    assert inputs.keep.shape[-2:] == (1, k.shape[-2])
    assert out.shape == (*q.shape[:-1], KV)
    assert not out.any()


def test_whole_numbers_are_refused(qkv):
    q, k, v = qkv
    for bad in ((q.long(), k, v), (q, k.long(), v), (q, k, v.bool())):
        with pytest.raises(ValueError, match="expected floating-point q, k and v, got"):
            ScaledDotProduct()(*bad)


def test_inputs_that_do_not_fit_are_refused(qkv):
    q, k, v = qkv
    for bad in ((q[0], k, v), (q, k, v[..., 1:, :]), (q[..., 1:], k, v), (q[0, 0],) * 3):
        with pytest.raises(ValueError, match="expected q, k and v"):
            ScaledDotProduct()(*bad)


def test_masks_that_a_mechanism_cannot_honour_are_refused(qkv):
    class Deaf(Attention):
        supports_attention_mask = False

        def forward(self, q, k, v, att_mask=None, key_padding_mask=None):
            return read_inputs(self, q, k, v, att_mask, key_padding_mask).restore(v)

    with pytest.raises(NotImplementedError, match="Deaf: expected no att_mask"):
        Deaf()(*qkv, att_mask=torch.zeros(MQ, MKV))
    with pytest.raises(NotImplementedError, match="Deaf: expected no key_padding_mask"):
        Deaf()(*qkv, key_padding_mask=torch.ones(B, MKV, dtype=torch.bool))


@pytest.mark.parametrize("name", ["scaled_dot_product", "local", "random"])
@pytest.mark.parametrize("mask", [[[True] * 5], AttentionMask.make_causal(5)], ids=["list", "mask"])
def test_key_padding_masks_are_tensors(mask, name):
    attention = build_attention({"name": name} | ({"r": 0.5} if name == "random" else {}))
    q = torch.randn(1, 2, 5, 4)
    with pytest.raises(TypeError, match="expected key_padding_mask, a tensor"):
        attention(q, q, q, key_padding_mask=mask)


def test_padding_of_integers_is_refused():
    with pytest.raises(ValueError, match=r"got torch\.int64; of a mask of ones and zeros"):
        as_keep("layer", torch.ones(2, 3, dtype=torch.int64))
