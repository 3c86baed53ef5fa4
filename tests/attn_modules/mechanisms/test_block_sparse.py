"""Block-sparse attention against dense attention over its layout."""

import pytest
import torch

from attn_modules import BlockSparseAttention, build_attention
from attn_ops.fmha.attn_bias import BlockSparseMask
from reference.modules.dense_attention import attend

LAYOUT = (torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.6).int()
LAYOUT[1, 2] = 0  # a row of blocks that sees nothing


def qkv(queries, keys, heads=3):
    generator = torch.Generator().manual_seed(queries)
    shapes = (2, heads, queries, 8), (2, heads, keys, 8), (2, heads, keys, 5)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def kept(layout, block_size, queries, keys, causal=False):
    """Return bool [H, queries, keys], looking each key's block up."""
    rows = [
        [
            [
                bool(head[i // block_size][j // block_size]) and (j <= i or not causal)
                for j in range(keys)
            ]
            for i in range(queries)
        ]
        for head in layout
    ]
    return torch.tensor(rows)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("block_size", "queries", "keys"), [(8, 32, 40), (8, 30, 17), (5, 3, 23), (1, 4, 4), (1, 2, 5)]
)
def test_output_and_gradients(causal, block_size, queries, keys):
    inputs = [x.requires_grad_() for x in qkv(queries, keys)]
    ours = BlockSparseAttention(LAYOUT, block_size, causal=causal)(*inputs)
    expected = attend(*inputs, kept(LAYOUT, block_size, queries, keys, causal))
    torch.testing.assert_close(ours, expected)
    weight = torch.randn_like(ours)
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs, weight),
        torch.autograd.grad(expected, inputs, weight),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("layout", [LAYOUT[0], LAYOUT[:1], LAYOUT[0].bool(), LAYOUT[0].float()])
@pytest.mark.parametrize("num_heads", [1, 3])
def test_all_heads_share_one_layout(layout, num_heads):
    inputs = qkv(30, 33)
    attention = BlockSparseAttention(layout, 8, num_heads=num_heads)
    expected = attend(*inputs, kept(LAYOUT[:1], 8, 30, 33))
    torch.testing.assert_close(attention(*inputs), expected)
    folded = [x.flatten(0, 1) for x in inputs]
    torch.testing.assert_close(attention(*folded), expected.flatten(0, 1))


def test_masks_and_padding():
    q, k, v = qkv(30, 36)
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(2, 3, 30, 36, generator=generator) < 0.8
    bias = torch.randn(30, 36, generator=generator, dtype=torch.float64)
    padding = torch.arange(36) < torch.tensor([[36], [17]])
    seen = kept(LAYOUT, 8, 30, 36) & padding[:, None, None]
    k[1, :, 17:], v[1, :, 17:] = torch.nan, torch.inf
    attention = BlockSparseAttention(LAYOUT, 8)
    torch.testing.assert_close(attention(q, k, v, keep, padding), attend(q, k, v, seen & keep))
    torch.testing.assert_close(attention(q, k, v, bias, padding), attend(q, k, v, seen, bias))


def test_folded_heads_keep_their_layouts():
    inputs = qkv(30, 36)
    keep = torch.rand(2, 3, 30, 36, generator=torch.Generator().manual_seed(0)) < 0.8
    padding = torch.arange(36) < torch.tensor([[36], [17]])
    folded = [x.flatten(0, 1) for x in inputs]
    attention = BlockSparseAttention(LAYOUT, 8)
    expected = attention(*inputs, keep, padding).flatten(0, 1)
    assert torch.equal(attention(*folded, keep.flatten(0, 1), padding), expected)
    with pytest.raises(ValueError, match="3 heads, which have patterns of their own"):
        attention(*(x[:4] for x in folded))


def test_the_future_does_not_leak():
    q, k, v = qkv(32, 32)
    attention = BlockSparseAttention(LAYOUT[:, :, :4], 8, causal=True)
    expected = attention(q, k, v)
    for filling in (100.0, torch.nan):
        changed = [x.clone() for x in (q, k, v)]
        for x in changed:
            x[:, :, 13:] = filling
        assert torch.equal(attention(*changed)[:, :, :13], expected[:, :, :13])


def test_the_layout_is_saved():
    attention = BlockSparseAttention(LAYOUT, 8)
    assert set(attention.state_dict()) == {"offsets", "indices"}
    assert torch.equal(attention.layout, LAYOUT.bool())
    other = BlockSparseAttention(LAYOUT.flip(1, 2), 8)
    assert not torch.equal(other.layout, attention.layout)
    other.load_state_dict(attention.state_dict())
    assert torch.equal(other.layout, attention.layout)


def test_every_option_is_in_the_configuration():
    built = build_attention(
        {"name": "blocksparse", "layout": LAYOUT, "block_size": 8, "causal": True, "num_heads": 3}
    )
    inputs = qkv(30, 36)
    attention = BlockSparseAttention(LAYOUT, 8, causal=True)
    assert torch.equal(built(*inputs), attention(*inputs))
    assert "blocks=[4, 5], block_size=8" in repr(built)


def test_longer_inputs_are_refused():
    attention = BlockSparseAttention(LAYOUT, 8)
    with pytest.raises(ValueError, match="at most 32 queries and 40 keys"):
        attention(*qkv(33, 40))
    with pytest.raises(ValueError, match="at most 32 queries and 40 keys"):
        attention(*qkv(32, 41))


def test_other_layouts_are_refused():
    with pytest.raises(ValueError, match="expected layout"):
        BlockSparseAttention(torch.ones(4))
    with pytest.raises(ValueError, match="for num_heads=2 heads, got one for 3"):
        BlockSparseAttention(LAYOUT, num_heads=2)
    mask = BlockSparseMask.from_pattern(torch.ones(3, 3, dtype=torch.bool), 16)
    with pytest.raises(TypeError, match=r"got a BlockSparseMask; .*mask_to_layout makes"):
        BlockSparseAttention(mask)
    with pytest.raises(ValueError, match="block_size, an int of 1 or more"):
        BlockSparseAttention(LAYOUT, 0)
