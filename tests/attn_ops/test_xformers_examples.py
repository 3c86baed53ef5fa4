"""The examples of xFormers' documentation, on the CPU, with its import replaced."""

import torch
from torch.testing import assert_close

import attn_ops as xops
from attn_ops import fmha
from eager_attention import softmax_attention

KWARGS = {"device": "cpu", "dtype": torch.float16}


def test_attention_with_and_without_options():
    q, k, v = torch.randn(3, 2, 16, 4, 32).unbind()
    y = xops.memory_efficient_attention(q, k, v)
    assert_close(y, softmax_attention(q, k, v))
    y = xops.memory_efficient_attention(q, k, v, p=0.2)
    assert y.shape == q.shape
    y = xops.memory_efficient_attention(q, k, v, attn_bias=xops.LowerTriangularMask())
    causal = torch.full((16, 16), float("-inf")).triu(1)
    assert_close(y, softmax_attention(q, k, v, causal))


def test_equivalent_pytorch_code():
    query, key, value = torch.randn(3, 2, 16, 4, 32).unbind()
    attn_bias = torch.randn(2, 4, 16, 16)
    out = xops.memory_efficient_attention(query, key, value, attn_bias)
    scale = 1.0 / query.shape[-1] ** 0.5
    query = query * scale
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    attn = query @ key.transpose(-2, -1)
    attn = attn + attn_bias
    attn = attn.softmax(-1)
    attn = attn @ value
    assert_close(out, attn.transpose(1, 2))


def test_grouped_query_attention():
    B, M, K = 3, 32, 128
    q = torch.randn([B, M, 8, K], **KWARGS)
    k = torch.randn([B, M, 2, K], **KWARGS)
    v = torch.randn([B, M, 2, K], **KWARGS)
    out_gqa = xops.memory_efficient_attention(
        q.reshape([B, M, 2, 4, K]),
        k.reshape([B, M, 2, 1, K]).expand([B, M, 2, 4, K]),
        v.reshape([B, M, 2, 1, K]).expand([B, M, 2, 4, K]),
    )
    expected = softmax_attention(q.float(), k.float(), v.float())
    assert_close(out_gqa.flatten(2, 3).float(), expected, atol=4e-3, rtol=4e-4)


def test_local_attention_mask():
    bias = fmha.attn_bias.LocalAttentionFromBottomRightMask(window_left=1, window_right=2)
    assert bias.materialize(shape=(4, 4)).exp().tolist() == [
        [1, 1, 1, 0],
        [1, 1, 1, 1],
        [0, 1, 1, 1],
        [0, 0, 1, 1],
    ]
    assert bias.materialize(shape=(4, 5)).exp().tolist() == [
        [1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1],
    ]


def test_block_diagonal_mask():
    K = 16
    list_x = [
        torch.randn([1, 3, 1, K], **KWARGS),
        torch.randn([1, 6, 1, K], **KWARGS),
        torch.randn([1, 2, 1, K], **KWARGS),
    ]
    attn_bias, x = fmha.BlockDiagonalMask.from_tensor_list(list_x)
    linear = torch.nn.Linear(K, K * 3).to(**KWARGS)
    q, k, v = linear(x).reshape([1, -1, 1, 3, K]).unbind(-2)
    out = fmha.memory_efficient_attention(q, k, v, attn_bias=attn_bias)
    list_out = attn_bias.split(out)
    assert [tuple(part.shape) for part in list_out] == [tuple(part.shape) for part in list_x]
    for part, alone in zip(list_out, list_x, strict=True):
        q, k, v = linear(alone).reshape([1, -1, 1, 3, K]).unbind(-2)
        assert_close(part, fmha.memory_efficient_attention(q, k, v))


def test_decoding_loop_that_sets_the_fields_of_its_mask():
    mask_type = fmha.attn_bias.BlockDiagonalCausalWithOffsetPaddedKeysMask
    query, key, value = torch.randn(3, 1, 24, 2, 8).unbind()
    bias = mask_type.from_seqlens(q_seqlen=[5, 3], kv_padding=12, kv_seqlen=[5, 3])
    q_seqstart, kv_seqlen = bias.q_seqinfo.seqstart, bias.k_seqinfo.seqlen
    fmha.memory_efficient_attention_forward(query[:, :8], key, value, bias)
    q_seqstart.copy_(torch.arange(3, dtype=torch.int))
    bias.q_seqinfo.min_seqlen = 1
    bias.q_seqinfo.max_seqlen = 1
    bias.q_seqinfo.seqstart_py = q_seqstart.tolist()
    for length in (6, 7):
        kv_seqlen.add_(kv_seqlen < 12)
        out = fmha.memory_efficient_attention_forward(query[:, :2], key, value, bias)
        fresh = mask_type.from_seqlens([1, 1], 12, [length, length - 2])
        assert torch.equal(out, xops.memory_efficient_attention(query[:, :2], key, value, fresh))


def test_names_that_attention_code_imports():
    for name in (
        "AttentionBias",
        "AttentionMask",
        "AttentionOp",
        "AttentionOpBase",
        "LowerTriangularMask",
        "MemoryEfficientAttentionCutlassFwdFlashBwOp",
        "MemoryEfficientAttentionCutlassOp",
        "MemoryEfficientAttentionFlashAttentionOp",
        "fmha",
        "memory_efficient_attention",
        "memory_efficient_attention_backward",
        "memory_efficient_attention_forward",
        "memory_efficient_attention_forward_requires_grad",
    ):
        assert name in xops.__all__
        assert hasattr(xops, name)
        if name != "fmha":
            assert getattr(fmha, name) is getattr(xops, name)
    for name in ("attn_bias", "cutlass", "flash", "memory_efficient_attention_partial"):
        assert hasattr(fmha, name)
