"""`memory_efficient_attention`: layouts, masks, biases, dropout and dtypes against eager torch."""

import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from attn_ops import (
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
    memory_efficient_attention,
)
from attn_ops._attention import draw_dropout
from attn_ops.fmha import cpu
from attn_ops.fmha.attn_bias import BlockDiagonalCausalWithOffsetPaddedKeysMask, BlockSparseMask
from eager_attention import make_inputs, softmax_attention

TRIANGULAR = [
    LowerTriangularMask(),
    LowerTriangularFromBottomRightMask(),
    LowerTriangularFromBottomRightMask().make_local_attention(3),
]


def gradients(out, inputs):
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out)
    return torch.autograd.grad(out, inputs, cotangent)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_4d_inputs_give_softmax_attention(requires_grad):
    inputs = make_inputs(requires_grad=requires_grad)
    assert_close(memory_efficient_attention(*inputs), softmax_attention(*inputs))


def test_3d_inputs_are_one_head():
    inputs = make_inputs(hq=1, hkv=1)
    out = memory_efficient_attention(*[x.squeeze(2) for x in inputs])
    assert_close(out, softmax_attention(*inputs).squeeze(2))


@pytest.mark.parametrize("mask", [None, *TRIANGULAR], ids=repr)
@pytest.mark.parametrize("hkv", [1, 2, 4])
def test_grouped_heads_forward_and_backward(mask, hkv):
    inputs = make_inputs(hkv=hkv, requires_grad=True)
    bias = None if mask is None else mask.materialize((5, 7), torch.float64)
    out, expected = memory_efficient_attention(*inputs, mask), softmax_attention(*inputs, bias)
    assert_close(out, expected)
    assert_close(gradients(out, inputs), gradients(expected, inputs))


def test_5d_inputs_expanded_over_heads_get_gradients_of_the_unexpanded():
    inputs = make_inputs(hq=6, hkv=2, requires_grad=True)
    query, key, value = inputs
    out = memory_efficient_attention(
        query.reshape(2, 5, 2, 3, 8),
        key.reshape(2, 7, 2, 1, 8).expand(2, 7, 2, 3, 8),
        value.reshape(2, 7, 2, 1, 6).expand(2, 7, 2, 3, 6),
    )
    expected = softmax_attention(*inputs)
    assert out.shape == (2, 5, 2, 3, 6)
    assert_close(out.flatten(2, 3), expected)
    assert_close(gradients(out.flatten(2, 3), inputs), gradients(expected, inputs))


def test_5d_inputs_with_heads_of_their_own():
    inputs = make_inputs(hq=6, hkv=6)
    out = memory_efficient_attention(*[x.unflatten(2, (2, 3)) for x in inputs])
    assert_close(out, softmax_attention(*inputs).unflatten(2, (2, 3)))


def test_expanded_leaves_get_a_gradient_for_every_index():
    query, key, value = (x.unflatten(2, (2, 1)) for x in make_inputs(hq=2, hkv=2))
    key, value = (x.expand(2, 7, 2, 3, -1).requires_grad_() for x in (key, value))
    query = query.expand(2, 5, 2, 3, -1)
    flat = [x.detach().reshape(*x.shape[:2], 6, -1).requires_grad_() for x in (query, key, value)]
    found = gradients(memory_efficient_attention(query, key, value).flatten(2, 3), (key, value))
    expected = gradients(softmax_attention(*flat), flat[1:])
    assert_close([x.flatten(2, 3) for x in found], list(expected))


def test_strided_views_are_read_in_place():
    packed = torch.randn(2, 7, 3, 4, 8, dtype=torch.float64)
    assert_close(
        memory_efficient_attention(*packed.unbind(2)), softmax_attention(*packed.unbind(2))
    )
    by_head = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in make_inputs()]
    assert_close(memory_efficient_attention(*by_head), softmax_attention(*by_head))


@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (1, 4, 5, 7), (2, 1, 1, 7), (1, 1, 5, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tensor_bias_broadcasts_and_has_a_gradient_of_its_own_shape(shape, dtype):
    inputs = make_inputs(hkv=2, requires_grad=True)
    bias = torch.randn(shape, dtype=dtype, requires_grad=True)
    out, expected = memory_efficient_attention(*inputs, bias), softmax_attention(*inputs, bias)
    assert_close(out, expected)
    found = gradients(out, [*inputs, bias])
    assert found[3].shape == bias.shape
    assert found[3].dtype == bias.dtype
    assert_close(found, gradients(expected, [*inputs, bias]))


def test_bias_only_gradient():
    inputs = make_inputs()
    bias = torch.randn(1, 4, 5, 7, dtype=torch.float64, requires_grad=True)
    found = gradients(memory_efficient_attention(*inputs, bias), bias)
    assert_close(found, gradients(softmax_attention(*inputs, bias), bias))


def test_expanded_bias_gets_the_gradient_of_the_unexpanded():
    inputs = make_inputs()
    bias = torch.randn(4, 1, 7, dtype=torch.float64, requires_grad=True)
    found = gradients(memory_efficient_attention(*inputs, bias.expand(2, 4, 5, 7)), bias)
    assert_close(found, gradients(softmax_attention(*inputs, bias), bias))


@pytest.mark.parametrize("heads", [(), (6,), (2, 3)])
def test_expanded_leaf_as_bias_gets_a_gradient_for_every_index(heads):
    num_heads = 6 if heads else 1
    flat = make_inputs(hq=num_heads, hkv=num_heads)
    inputs = [x.reshape(*x.shape[:2], *heads, x.shape[-1]) for x in flat]
    bias = torch.randn(*[1] * len(heads), 1, 1, 7, dtype=torch.float64)
    bias = bias.expand(2, *heads, 5, 7).requires_grad_()
    full = bias.detach().reshape(2, num_heads, 5, 7).requires_grad_()
    out, expected = memory_efficient_attention(*inputs, bias), softmax_attention(*flat, full)
    (found,) = torch.autograd.grad(out.reshape(expected.shape).square().sum(), bias)
    (wanted,) = torch.autograd.grad(expected.square().sum(), full)
    assert_close(found.reshape(full.shape), wanted)


def test_boolean_bias_keeps_where_true():
    inputs = make_inputs(requires_grad=True)
    keep = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1)) > 0.4
    keep[0, 0, 2] = False
    out, expected = memory_efficient_attention(*inputs, keep), softmax_attention(*inputs, keep)
    assert_close(out, expected)
    assert (out[0, 2] == 0).all()
    assert_close(gradients(out, inputs), gradients(expected, inputs))


def test_bias_of_3d_inputs():
    inputs = make_inputs(hq=1, hkv=1)
    bias = torch.randn(2, 5, 7, dtype=torch.float64)
    out = memory_efficient_attention(*[x.squeeze(2) for x in inputs], bias)
    assert_close(out, softmax_attention(*inputs, bias.unsqueeze(1)).squeeze(2))


@pytest.mark.parametrize("shape", [(2, 2, 3, 5, 7), (1, 1, 3, 5, 7), (2, 2, 1, 5, 7), (1,) * 5])
def test_bias_of_5d_inputs(shape):
    inputs = make_inputs(hq=6, hkv=6)
    bias = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    out = memory_efficient_attention(*[x.unflatten(2, (2, 3)) for x in inputs], bias)
    full = bias.expand(-1, 2, 3, -1, -1).flatten(1, 2)
    expected = softmax_attention(*inputs, full)
    assert_close(out.flatten(2, 3), expected)
    assert_close(gradients(out.flatten(2, 3), bias), gradients(expected, bias))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_scale_replaces_the_default(requires_grad):
    inputs = make_inputs(requires_grad=requires_grad)
    for scale in (0.1, 0, -1.5):
        out = memory_efficient_attention(*inputs, scale=scale)
        assert_close(out, softmax_attention(*inputs, scale=scale))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("output_dtype", [None, torch.float32, torch.bfloat16, torch.float16])
def test_output_dtype_is_honoured(dtype, output_dtype, requires_grad):
    inputs = [x.detach().to(dtype).requires_grad_(requires_grad) for x in make_inputs()]
    out = memory_efficient_attention(*inputs, output_dtype=output_dtype)
    assert out.dtype == (output_dtype or dtype)
    expected = softmax_attention(*[x.double() for x in inputs])
    assert_close(out.double(), expected, atol=2e-2, rtol=2e-2)
    if requires_grad:
        found = gradients(out, inputs)
        assert [x.dtype for x in found] == [dtype] * 3
        reference = gradients(expected, inputs)
        assert_close(found, reference, atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize(
    "empty", [{"batch": 0}, {"mq": 0}, {"mkv": 0}, {"mq": 0, "mkv": 0}], ids=str
)
def test_empty_extents_give_empty_or_zero(empty):
    inputs = make_inputs(**empty, requires_grad=True)
    out = memory_efficient_attention(*inputs)
    assert out.shape == (*inputs[0].shape[:3], 6)
    assert (out == 0).all()
    for gradient, x in zip(gradients(out, inputs), inputs, strict=True):
        assert gradient.shape == x.shape
        assert (gradient == 0).all()


def test_rows_that_are_not_there_may_have_any_stride():
    query, key, value = make_inputs()
    # contiguous() returns such a tensor as it is.
    none = query[:, :0].repeat_interleave(2, -1)[..., ::2]
    assert none.stride(-1) == 2
    for options in ({}, {"p": 0.5}, {"softcap": 2.0}):  # at once, and the long way
        out = memory_efficient_attention(none, key, value, **options)
        assert out.shape == (*none.shape[:3], 6)


def test_queries_before_the_first_key_give_zero():
    inputs = make_inputs(mq=7, mkv=3, requires_grad=True)
    out = memory_efficient_attention(*inputs, LowerTriangularFromBottomRightMask())
    assert (out[:, :4] == 0).all()
    assert (out[:, 4:] != 0).all()
    assert (gradients(out, inputs)[0][:, :4] == 0).all()


def dropped_weights(query, key, p, seed):
    """Return dropout(softmax(...)): the output for a value that is the identity."""
    identity = torch.eye(key.shape[1], dtype=query.dtype)[None, :, None]
    value = identity.expand(query.shape[0], -1, key.shape[2], -1)
    torch.manual_seed(seed)
    return memory_efficient_attention(query, key, value, p=p)


def test_dropout_repeats_with_the_seed_and_keeps_the_expected_part():
    query, key, value = make_inputs(batch=4, mq=64, mkv=64)
    weights = dropped_weights(query, key, 0.25, seed=3)
    assert_close(weights, dropped_weights(query, key, 0.25, seed=3), rtol=0, atol=0)
    assert not torch.equal(weights, dropped_weights(query, key, 0.25, seed=4))
    assert (weights != 0).double().mean() == pytest.approx(0.75, abs=0.01)
    torch.manual_seed(3)
    out = memory_efficient_attention(query, key, value, p=0.25)
    assert_close(out, torch.einsum("bihj,bjhv->bihv", weights, value))


def test_dropout_backward_redraws_the_forward_mask():
    inputs = make_inputs(mq=9, mkv=11, requires_grad=True)
    query, key, value = inputs
    kept = dropped_weights(query.detach(), key.detach(), 0.5, seed=8) != 0
    torch.manual_seed(8)
    out = memory_efficient_attention(*inputs, p=0.5)
    scores = query.shape[-1] ** -0.5 * torch.einsum("bihk,bjhk->bihj", query, key)
    expected = torch.einsum("bihj,bjhv->bihv", scores.softmax(-1) * kept / 0.5, value)
    assert_close(out, expected)
    assert_close(gradients(out, inputs), gradients(expected, inputs))


def test_dropout_is_refused_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ValueError, match=r"expected p=0 while a CUDA graph is captured, got 0\.5"):
        draw_dropout(0.5, torch.device("cuda"))
    assert draw_dropout(0.0, torch.device("cuda")).p == 0.0
    assert draw_dropout(0.5, torch.device("cpu")).p == 0.5


def test_dropout_of_everything_gives_zero():
    assert (memory_efficient_attention(*make_inputs(), p=1.0) == 0).all()


def test_result_does_not_depend_on_the_number_of_threads():
    inputs = make_inputs(mq=300, mkv=300, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        outs = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outs.append(memory_efficient_attention(*inputs))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


COUNT_STARTED_THREADS = """
import os, sys, torch, attn_ops
torch.set_num_threads(int(sys.argv[1]))
x = torch.randn(2, 500, 4, 64)
before = len(os.listdir("/proc/self/task"))
attn_ops.memory_efficient_attention(x, x, x)
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_attention_runs_on_the_threads_torch_is_told_to_use(threads):
    command = [sys.executable, "-c", COUNT_STARTED_THREADS, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == threads - 1


def test_sink_takes_its_share_of_every_query():
    inputs = make_inputs(requires_grad=True)
    sink = torch.randn(4, dtype=torch.float64, requires_grad=True)
    out = memory_efficient_attention(*inputs, LowerTriangularMask(), sink=sink)
    query, key, value = inputs
    empty_key = torch.zeros(2, 1, 4, 8, dtype=torch.float64)
    causal = LowerTriangularMask().materialize((5, 7), torch.float64).expand(2, 4, 5, 7)
    bias = torch.cat([causal, sink[None, :, None, None].expand(2, 4, 5, 1)], -1)
    expected = softmax_attention(
        query, torch.cat([key, empty_key], 1), torch.cat([value, empty_key[..., :6]], 1), bias
    )
    assert_close(out, expected)
    leaves = [*inputs, sink]
    assert_close(gradients(out, leaves), gradients(expected, leaves))


def test_sink_alone_wants_a_gradient():
    sink = torch.zeros(4, requires_grad=True)
    memory_efficient_attention(*make_inputs(), sink=sink).sum().backward()
    assert sink.grad is not None
    assert (sink.grad != 0).all()


@pytest.mark.parametrize("softcap", [0.5, 3])
def test_softcap_bounds_the_scores(softcap):
    inputs = make_inputs(requires_grad=True)
    query, key, value = inputs
    scores = query.shape[-1] ** -0.5 * torch.einsum("bihk,bjhk->bhij", query, key)
    weights = (softcap * torch.tanh(scores / softcap)).softmax(-1)
    expected = torch.einsum("bhij,bjhv->bihv", weights, value)
    out = memory_efficient_attention(*inputs, softcap=softcap)
    assert_close(out, expected)
    assert_close(gradients(out, inputs), gradients(expected, inputs))


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 6])
def test_dropout_of_blocks_is_that_of_a_keep_mask(block_size):
    inputs = make_inputs(mq=12, mkv=12, requires_grad=True)
    blocks = -(-12 // block_size)
    pattern = torch.rand(blocks, blocks, generator=torch.Generator().manual_seed(2)) > 0.4
    mask = BlockSparseMask.from_pattern(pattern, block_size)
    results = []
    for attn_bias in (mask, mask.materialize((1, 1, 12, 12)) == 0):
        torch.manual_seed(9)
        out = memory_efficient_attention(*inputs, attn_bias, p=0.5)
        results.append((out, *gradients(out, inputs)))
    assert_close(*results)


PADDED = BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens([2, 3], 4, [4, 3])


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("axes", [4, 5])
@pytest.mark.parametrize("attn_bias", [None, LowerTriangularMask(), PADDED, torch.ones(1, 4, 5, 8)])
def test_usual_calls_take_the_shortest_way_to_the_same_bits(attn_bias, axes, requires_grad):
    inputs = make_inputs(batch=1, mkv=8, hkv=4, requires_grad=requires_grad)
    if axes == 5:
        inputs = [x.unflatten(2, (2, 2)) for x in inputs]
        if isinstance(attn_bias, torch.Tensor):
            attn_bias = attn_bias.unflatten(1, (2, 2))
    out = memory_efficient_attention(*inputs, attn_bias)
    assert torch.equal(out, memory_efficient_attention(*inputs, attn_bias, op=(cpu.FwOp, None)))
    assert out.shape == inputs[0].shape[:-1] + inputs[2].shape[-1:]


def test_a_learned_bias_goes_the_short_way_where_nothing_is_recorded(monkeypatch):
    inputs = make_inputs(batch=1, mkv=8)
    bias = torch.nn.Parameter(torch.ones(1, 4, 5, 8))
    expected = memory_efficient_attention(*inputs, bias)
    assert expected.requires_grad
    monkeypatch.delattr("attn_ops._attention.canonical")  # which the long way calls
    with torch.no_grad():
        assert torch.equal(memory_efficient_attention(*inputs, bias), expected)
    with pytest.raises(NameError):
        memory_efficient_attention(*inputs, bias)
