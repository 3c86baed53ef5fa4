"""Every wrong argument is refused by its name; canonical inputs are views."""

import re

import pytest
import torch

from attn_ops import LowerTriangularMask, _inputs, memory_efficient_attention

F32 = torch.float32


def rand(*shape, dtype=F32):
    return torch.randn(shape).to(dtype)


Q4, K4, V4 = rand(2, 5, 4, 8), rand(2, 7, 4, 8), rand(2, 7, 4, 6)
Q5, K5, V5 = rand(2, 5, 2, 3, 8), rand(2, 7, 2, 3, 8), rand(2, 7, 2, 3, 6)

WRONG_VALUES = {
    "one dimension too few": (lambda: (rand(5, 8),) * 3, {}, "got query with 2"),
    "one dimension too many": (lambda: (rand(1, 1, 1, 1, 1, 1),) * 3, {}, "got query with 6"),
    "mixed dimensions": (lambda: (Q4, rand(2, 7, 8), V4), {}, "got key with 3 and query with 4"),
    "mixed dtypes": (lambda: (Q4, K4, V4.half()), {}, "got value of torch.float16"),
    "mixed devices": (lambda: (Q4, K4.to("meta"), V4), {}, "got key on meta"),
    "sparse": (lambda: (Q4.to_sparse(), K4, V4), {}, "expected a strided query"),
    "batch": (lambda: (Q4, K4[:1], V4[:1]), {}, "We don't support broadcasting"),
    "keys": (lambda: (Q4, K4, V4[:, :3]), {}, "Incompatible shapes"),
    "widths": (lambda: (Q4, K4[..., :7], V4), {}, "Incompatible shapes"),
    "heads not a multiple": (lambda: (Q4, K4[:, :, :3], V4[:, :, :3]), {}, "heads a multiple"),
    "more key heads": (lambda: (Q4[:, :, :2], K4, V4), {}, "heads a multiple"),
    "key and value heads": (lambda: (Q4, K4, V4[:, :, :2]), {}, "Incompatible shapes"),
    "groups": (lambda: (Q5, K5[:, :, :1], V5[:, :, :1]), {}, "equal heads"),
    "heads of a group": (lambda: (Q5, K5[:, :, :, :1], V5[:, :, :, :1]), {}, "equal heads"),
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
    "bias rank": (lambda: (Q4, K4, V4), {"attn_bias": rand(5, 7)}, "[2, 4, 5, 7]"),
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
    "op": (lambda: (Q4, K4, V4), {"op": (None, None)}, "expected op=None"),
}

WRONG_TYPES = {
    "query": (lambda: (None, K4, V4), {}, "a torch.Tensor as query"),
    "key": (lambda: (Q4, K4.numpy(), V4), {}, "a torch.Tensor as key"),
    "value": (lambda: (Q4, K4, [1.0]), {}, "a torch.Tensor as value"),
    "p": (lambda: (Q4, K4, V4), {"p": "0.5"}, "a number as p"),
    "scale tensor": (
        lambda: (Q4, K4, V4),
        {"scale": torch.tensor(0.3)},
        "a number or None as scale",
    ),
    "scale": (lambda: (Q4, K4, V4), {"scale": "1"}, "a number or None as scale"),
    "output_dtype": (lambda: (Q4, K4, V4), {"output_dtype": "float32"}, "torch.dtype"),
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


def canonical(query, key, value, attn_bias=None):
    inputs = _inputs.Inputs(query, key, value, attn_bias, 0.0, None, None)
    _inputs.check(inputs)
    return _inputs.canonical(inputs)


def test_4d_inputs_pass_through():
    views = canonical(Q4, K4, V4, LowerTriangularMask())
    assert views.query is Q4
    assert views.key is K4
    assert views.value is V4
    assert views.bias is None


def test_keys_expanded_over_heads_collapse_to_their_groups_without_a_copy():
    key, value = (x[:, :, :, :1].expand(2, 7, 2, 3, -1) for x in (K5, V5))
    views = canonical(Q5, key, value)
    assert views.query.shape == (2, 5, 6, 8)
    assert views.key.shape == (2, 7, 2, 8)
    assert views.value.shape == (2, 7, 2, 6)
    for view, original in ((views.query, Q5), (views.key, K5), (views.value, V5)):
        assert view.data_ptr() == original.data_ptr()


def test_keys_of_their_own_become_all_heads_without_a_copy():
    views = canonical(Q5, K5, V5)
    assert views.key.shape == (2, 7, 6, 8)
    assert views.key.data_ptr() == K5.data_ptr()


def test_bias_that_repeats_is_narrowed_without_a_copy():
    bias = rand(4, 1, 7)
    view = canonical(Q4, K4, V4, bias.expand(2, 4, 5, 7)).bias
    assert view is not None
    assert view.shape == (1, 4, 1, 7)
    assert view.data_ptr() == bias.data_ptr()
    for shape in ((1, 1, 1, 5, 7), (2, 2, 3, 5, 7)):
        bias = rand(*shape)
        view = canonical(Q5, K5, V5, bias).bias
        assert view is not None
        assert view.shape == (shape[0], shape[1] * shape[2], 5, 7)
        assert view.data_ptr() == bias.data_ptr()
