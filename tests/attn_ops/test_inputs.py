"""Every wrong argument is refused by its name."""

import re

import numpy as np
import pytest
import torch

from attn_ops import LowerTriangularMask, memory_efficient_attention
from attn_ops.fmha.attn_bias import PagedBlockDiagonalPaddedKeysMask

F32 = torch.float32


def rand(*shape, dtype=F32):
    return torch.randn(shape).to(dtype)


Q4, K4, V4 = rand(2, 5, 4, 8), rand(2, 7, 4, 8), rand(2, 7, 4, 6)
Q5, K5, V5 = rand(2, 5, 2, 3, 8), rand(2, 7, 2, 3, 8), rand(2, 7, 2, 3, 6)

WRONG_VALUES = {
    "one dimension too few": (
        lambda: (rand(5, 8),) * 3,
        {},
        "query [B, M, K] (one head), [B, M, H, K]",
    ),
    "one dimension too many": (lambda: (rand(1, 1, 1, 1, 1, 1),) * 3, {}, "with 6 dimensions"),
    "mixed dimensions": (
        lambda: (Q4, rand(2, 7, 8), V4),
        {},
        "got key [2, 7, 8] and query [2, 5, 4, 8]",
    ),
    "mixed dtypes": (lambda: (Q4, K4, V4.half()), {}, "got value of torch.float16"),
    "mixed devices": (lambda: (Q4, K4.to("meta"), V4), {}, "got key on meta"),
    "sparse": (lambda: (Q4.to_sparse(), K4, V4), {}, "expected a strided query"),
    "batch": (lambda: (Q4, K4[:1], V4[:1]), {}, "one B for query, key and value, got 2, 1, 1"),
    "keys": (lambda: (Q4, K4, V4[:, :3]), {}, "one Mkv for key and value, got 7, 3"),
    "widths": (lambda: (Q4, K4[..., :7], V4), {}, "one K for query and key, got 8, 7"),
    "heads not a multiple": (
        lambda: (Q4, K4[:, :, :3], V4[:, :, :3]),
        {},
        "query's heads to be a multiple of key's, got 4, 3",
    ),
    "more key heads": (lambda: (Q4[:, :, :2], K4, V4), {}, "a multiple of key's, got 2, 4"),
    "key and value heads": (
        lambda: (Q4, K4, V4[:, :, :2]),
        {},
        "one number of heads for key and value, got 4, 2",
    ),
    "groups": (lambda: (Q5, K5[:, :, :1], V5[:, :, :1]), {}, "one G for query, key and value"),
    "groups for heads": (
        lambda: (Q5, K5.transpose(2, 3), V5.transpose(2, 3)),
        {},
        "one G for query",
    ),
    "heads of a group": (lambda: (Q5, K5[:, :, :, :1], V5[:, :, :, :1]), {}, "one H for query"),
    "no heads": (lambda: (Q4[:, :, :0], K4[:, :, :0], V4[:, :, :0]), {}, "one head or more"),
    "no width": (lambda: (Q4[..., :0], K4[..., :0], V4), {}, "of width 1 or more"),
    "no value width": (lambda: (Q4, K4, V4[..., :0]), {}, "of width 1 or more"),
    "query stride": (lambda: (rand(2, 5, 8, 4).mT, K4, V4), {}, "last dimension of query"),
    "value stride": (lambda: (Q4, K4, V4.expand(2, 7, 4, 6)[..., ::2]), {}, "value.contiguous()"),
    "expanded width": (
        lambda: (rand(2, 5, 4, 1).expand(2, 5, 4, 8), K4, V4),
        {},
        "stride 1, got 0",
    ),
    "bias rank": (lambda: (Q4, K4, V4), {"attn_bias": rand(5, 7)}, "bias[None, None, :, :]"),
    "bias keys": (lambda: (Q4, K4, V4), {"attn_bias": rand(2, 4, 5, 8)}, "got [2, 4, 5, 8]"),
    "bias heads": (lambda: (Q4, K4, V4), {"attn_bias": rand(2, 2, 5, 7)}, "got [2, 2, 5, 7]"),
    "bias of 5-D": (lambda: (Q5, K5, V5), {"attn_bias": rand(2, 6, 5, 7)}, "[B, G, H, Mq, Mkv]"),
    "bias dtype": (lambda: (Q4, K4, V4), {"attn_bias": rand(1, 1, 5, 7).half()}, "torch.float16"),
    "bias of integers": (lambda: (Q4, K4, V4), {"attn_bias": rand(1, 1, 5, 7).int()}, "torch.bool"),
    "bias device": (
        lambda: (Q4, K4, V4),
        {"attn_bias": rand(1, 1, 5, 7).to("meta")},
        "query's device cpu, got meta",
    ),
    "sparse bias": (lambda: (Q4, K4, V4), {"attn_bias": rand(1, 1, 5, 7).to_sparse()}, "strided"),
    "p negative": (lambda: (Q4, K4, V4), {"p": -0.1}, "p in [0, 1], got -0.1"),
    "p above one": (lambda: (Q4, K4, V4), {"p": 1.1}, "p in [0, 1], got 1.1"),
    "p nan": (lambda: (Q4, K4, V4), {"p": float("nan")}, "p in [0, 1], got nan"),
    "scale infinite": (lambda: (Q4, K4, V4), {"scale": float("inf")}, "finite scale, got inf"),
    "scale nan": (lambda: (Q4, K4, V4), {"scale": float("nan")}, "finite scale, got nan"),
    "output float64": (lambda: (Q4, K4, V4), {"output_dtype": torch.float64}, "output_dtype in"),
    "output int": (lambda: (Q4, K4, V4), {"output_dtype": torch.int32}, "output_dtype in"),
    "output of float64": (
        lambda: (Q4.double(), K4.double(), V4.double()),
        {"output_dtype": F32},
        "got torch.float32",
    ),
    "nested": (
        lambda: (torch.nested.nested_tensor([rand(5, 8)] * 2, layout=torch.jagged), K4, V4),
        {},
        "got a nested tensor; concatenate its parts",
    ),
    "sink heads": (lambda: (Q4, K4, V4), {"sink": rand(3)}, "each head of query, [4], got [3]"),
    "sink of 5-D": (lambda: (Q5, K5, V5), {"sink": rand(3, 2)}, "[6] or [2, 3], got [3, 2]"),
    "sink dtype": (lambda: (Q4, K4, V4), {"sink": rand(4).half()}, "sink of query's dtype"),
    "sink device": (lambda: (Q4, K4, V4), {"sink": rand(4).to("meta")}, "expected sink on query's"),
    "softcap zero": (lambda: (Q4, K4, V4), {"softcap": 0.0}, "finite softcap above 0"),
    "softcap nan": (lambda: (Q4, K4, V4), {"softcap": float("nan")}, "finite softcap above 0"),
    "softcap infinite": (lambda: (Q4, K4, V4), {"softcap": float("inf")}, "finite softcap above 0"),
}

WRONG_TYPES = {
    "query": (lambda: (None, K4, V4), {}, "a torch.Tensor as query"),
    "key": (lambda: (Q4, K4.numpy(), V4), {}, "a torch.Tensor as key"),
    "value": (lambda: (Q4, K4, [1.0]), {}, "a torch.Tensor as value"),
    "p": (lambda: (Q4, K4, V4), {"p": "0.5"}, "a number as p"),
    "p as a flag": (
        lambda: (Q4, K4, V4),
        {"p": True},
        "probability of dropping, got True of <class 'bool",
    ),
    "scale tensor": (
        lambda: (Q4, K4, V4),
        {"scale": torch.tensor(0.3)},
        "of <class 'torch.Tensor'>; pass its float()",
    ),
    "scale": (lambda: (Q4, K4, V4), {"scale": "1"}, "a number or None as scale"),
    "scale as a flag": (
        lambda: (Q4, K4, V4),
        {"scale": True},
        "as scale, got True of <class 'bool",
    ),
    "output_dtype": (lambda: (Q4, K4, V4), {"output_dtype": "float32"}, "torch.dtype"),
    "mask class": (
        lambda: (Q4, K4, V4),
        {"attn_bias": LowerTriangularMask},
        "got the class LowerTriangularMask; pass an instance, such as LowerTriangularMask()",
    ),
    "mask in words": (lambda: (Q4, K4, V4), {"attn_bias": "causal"}, "a mask, got 'causal' of"),
    "mask as a flag": (
        lambda: (Q4, K4, V4),
        {"attn_bias": True},
        "a mask, got True of <class 'bool",
    ),
    "mask as a list": (lambda: (Q4, K4, V4), {"attn_bias": [[0.0]]}, "a tensor or a mask, got [["),
    "sink": (lambda: (Q4, K4, V4), {"sink": [0.0] * 4}, "a torch.Tensor as sink"),
    "softcap": (lambda: (Q4, K4, V4), {"softcap": "30"}, "a number or None as softcap"),
    "softcap as a flag": (
        lambda: (Q4, K4, V4),
        {"softcap": True},
        "as softcap, got True of <class 'bool",
    ),
}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("case", WRONG_VALUES)
def test_wrong_value_names_the_argument(case, requires_grad):
    make, options, message = WRONG_VALUES[case]
    query, *others = make()
    if requires_grad:
        query = query.detach().requires_grad_()
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        memory_efficient_attention(query, *others, **options)
    assert str(raised.value).startswith("memory_efficient_attention: ")


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_wrong_type_names_the_argument(case):
    make, options, message = WRONG_TYPES[case]
    with pytest.raises(TypeError, match=re.escape(message)):
        memory_efficient_attention(*make(), **options)


def test_no_dropout_may_be_false():
    # As `training and 0.1` is.
    out = memory_efficient_attention(Q4, K4, V4, p=False, softcap=9.0)
    assert torch.equal(out, memory_efficient_attention(Q4, K4, V4, softcap=9.0))


def refusal_of(*arguments):
    with pytest.raises(ValueError, match="Incompatible shapes for attention inputs") as raised:
        memory_efficient_attention(*arguments)
    return str(raised.value)


@pytest.mark.parametrize("compiles", [False, True])
def test_numbers_of_numpy_are_numbers(compiles):
    attend = memory_efficient_attention
    if compiles:
        attend = torch.compile(attend, backend="aot_eager")
    found = attend(Q4, K4, V4, None, np.float32(0.0), np.float32(0.25), softcap=np.float32(9))
    assert torch.equal(found, attend(Q4, K4, V4, None, 0.0, 0.25, softcap=9.0))
    attend(Q4, K4, V4, None, np.float32(0.5))


def test_only_broken_rules_are_named():
    told = refusal_of(Q4, K4[..., :7], V4[:, :3])
    assert told.count("expected ") == 2
    assert "HINT" not in told


def test_broadcasting_is_hinted_at_where_an_extent_is_1():
    assert "We don't support broadcasting" in refusal_of(Q4, K4[:1], V4[:1])
    assert "We don't support broadcasting" in refusal_of(Q5, K5[:, :, :, :1], V5[:, :, :, :1])


def test_transposing_is_hinted_at_where_it_makes_the_shapes_fit():
    told = refusal_of(Q4.transpose(1, 2), K4.transpose(1, 2), V4.transpose(1, 2))
    assert "transpose(1, 2)" in told
    assert "transpose" not in refusal_of(Q4, K4[:, :, :3], V4[:, :, :3])


def test_transposing_is_not_hinted_at_where_heads_alone_are_wrong():
    query, key = rand(2, 128, 8, 16), rand(2, 128, 3, 16)
    told = refusal_of(query, key, key)
    assert told.endswith("expected query's heads to be a multiple of key's, got 8, 3")
    query, key = rand(2, 32, 1, 16), rand(2, 8, 20, 16)  # one query of 32 heads, as SDPA takes it
    assert "SDPA's layout" in refusal_of(query, key, key)


def test_pages_given_apart_are_hinted_at():
    tables = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32)
    mask = PagedBlockDiagonalPaddedKeysMask.from_seqlens([1, 1], [3, 1], tables, page_size=2)
    query, cache = rand(1, 2, 4, 8), rand(4, 2, 4, 8)
    told = refusal_of(query, cache, cache, mask)
    assert "key.flatten(0, 1).unsqueeze(0), [1, 8, 4, 8]" in told
    assert "expand" not in told
    joined = cache.flatten(0, 1).unsqueeze(0)
    assert memory_efficient_attention(query, joined, joined, mask).shape == (1, 2, 4, 8)
