"""merge_attentions: values, gradients, layouts, errors, and that parts merged are the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from attn_ops.fmha.functions import memory_efficient_attention_partial
from attn_ops.fmha.merge import merge_attentions

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
INF = float("inf")


def make_chunks(chunks=3, shape=(2, 5, 3, 8), dtype=torch.float64, seed=0):
    """Return lists of outputs and LSEs; LSEs are float32 unless the outputs are float64."""
    generator = torch.Generator().manual_seed(seed)
    batch, queries, *heads, _ = shape
    lse_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    outs = [torch.randn(shape, generator=generator).to(dtype) for _ in range(chunks)]
    lses = [torch.randn(batch, *heads, queries, generator=generator) * 3 for _ in range(chunks)]
    return outs, [lse.to(lse_dtype) for lse in lses]


def expected_merge(outs, lses):
    """Return the definition in float64, for lists or stacks of chunks."""
    outs = torch.stack(list(outs)).double()
    lses = torch.stack(list(lses)).double()
    lse = lses.logsumexp(0)
    weights = (lses - lse.masked_fill(lse == -INF, 0.0)).exp().movedim(-1, 2).unsqueeze(-1)
    return (weights * outs.masked_fill(weights == 0.0, 0.0)).sum(0), lse


def with_gradient(tensors):
    return [tensor.detach().requires_grad_() for tensor in tensors]


def tolerance(dtype):
    """Return a rounding to `dtype`, and a little for weights and sums in float32."""
    return {"rtol": torch.finfo(dtype).eps, "atol": 1e-13 if dtype == torch.float64 else 3e-6}


@pytest.mark.parametrize("shape", [(2, 5, 3, 8), (2, 5, 2, 3, 8)], ids=["BMHK", "BMGHK"])
@pytest.mark.parametrize("output_dtype", [None, *DTYPES[:3]])
@pytest.mark.parametrize("dtype", DTYPES)
def test_merge_is_the_definition(dtype, output_dtype, shape):
    if dtype == torch.float64:
        output_dtype = None
    outs, lses = make_chunks(shape=shape, dtype=dtype)
    out, lse = merge_attentions(outs, lses, output_dtype=output_dtype)
    expected_out, expected_lse = expected_merge(outs, lses)
    assert out.dtype == (output_dtype or dtype)
    assert lse.dtype == lses[0].dtype
    assert_close(out.double(), expected_out, **tolerance(out.dtype))
    assert_close(lse.double(), expected_lse, **tolerance(lse.dtype))


@pytest.mark.parametrize("shape", [(2, 5, 3, 8), (2, 5, 2, 3, 8)], ids=["BMHK", "BMGHK"])
def test_lists_and_stacks_give_the_same_bits(shape):
    outs, lses = make_chunks(shape=shape, dtype=torch.float32)
    expected = merge_attentions(outs, lses)
    for split in [
        (torch.stack(outs), torch.stack(lses)),
        (torch.stack(outs), lses),
        (tuple(outs), torch.stack(lses)),
    ]:
        out, lse = merge_attentions(*split)
        assert torch.equal(out, expected[0])
        assert torch.equal(lse, expected[1])


def test_strides_do_not_matter():
    outs, lses = make_chunks(shape=(2, 5, 2, 3, 8), dtype=torch.float32)
    expected = merge_attentions(outs, lses)
    turned_outs = [out.transpose(1, 3).contiguous().transpose(1, 3) for out in outs]
    sparse_outs = [torch.stack([out, out], -1)[..., 0] for out in outs]
    turned_lses = [lse.transpose(1, 3).contiguous().transpose(1, 3) for lse in lses]
    for given_outs in (turned_outs, sparse_outs):
        out, lse = merge_attentions(given_outs, turned_lses)
        assert torch.equal(out, expected[0])
        assert torch.equal(lse, expected[1])


def test_without_lse():
    outs, lses = with_gradient(make_chunks()[0]), with_gradient(make_chunks()[1])
    out, lse = merge_attentions(outs, lses, write_lse=False)
    assert lse is None
    found = torch.autograd.grad(out.square().sum(), [*outs, *lses])
    expected = torch.autograd.grad(expected_merge(outs, lses)[0].square().sum(), [*outs, *lses])
    assert_close(found, expected)


def test_lse_keeps_its_dtype():
    outs, lses = make_chunks(dtype=torch.bfloat16)
    out, lse = merge_attentions(outs, [lse.double() for lse in lses])
    expected, expected_lse = merge_attentions(outs, lses)
    assert lse.dtype == torch.float64
    assert torch.equal(out, expected)
    assert torch.equal(lse.float(), expected_lse)


def test_empty_chunks_add_nothing_whatever_they_hold():
    outs, lses = make_chunks()
    for chunk in (0, 2):
        lses[chunk][0, 1] = -INF
        outs[chunk][0, :, 1] = float("nan")
    lses[1][0, 1, 2:] = -INF  # the last queries of that head see nothing at all
    outs[1][0, 2:, 1] = float("nan")
    outs, lses = with_gradient(outs), with_gradient(lses)
    out, lse = merge_attentions(outs, lses)
    assert torch.equal(out[0, :2, 1], outs[1][0, :2, 1])
    assert torch.equal(lse[0, 1, :2], lses[1][0, 1, :2])
    assert not out[0, 2:, 1].any()
    assert (lse[0, 1, 2:] == -INF).all()

    gradients = torch.autograd.grad(out.sum() + lse[lse > -INF].sum(), [*outs, *lses])
    for chunk in (0, 2):
        assert not gradients[chunk][0, :, 1].any()
        assert not gradients[3 + chunk][0, 1].any()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("shape", [(2, 3, 2, 5), (1, 2, 2, 2, 3)], ids=["BMHK", "BMGHK"])
@pytest.mark.parametrize("stacked", [False, True])
def test_gradcheck(shape, stacked):
    outs, lses = make_chunks(shape=shape)
    if stacked:
        inputs = with_gradient([torch.stack(outs), torch.stack(lses)])
        assert torch.autograd.gradcheck(merge_attentions, inputs)
    else:
        inputs = with_gradient([*outs, *lses])
        assert torch.autograd.gradcheck(lambda *x: merge_attentions(x[:3], x[3:]), inputs)


@pytest.mark.parametrize("wanted", [[0], [4], [1, 3, 5]])
def test_gradient_of_some_chunks(wanted):
    tensors = [tensor for chunks in make_chunks() for tensor in chunks]
    leaves = [tensors[place].requires_grad_() for place in wanted]
    weights = torch.randn(2, 5, 3, 8), torch.randn(2, 3, 5)

    def gradients(merged):
        out, lse = merged
        return torch.autograd.grad((out * weights[0]).sum() + (lse * weights[1]).sum(), leaves)

    found = gradients(merge_attentions(tensors[:3], tensors[3:]))
    assert_close(found, gradients(expected_merge(tensors[:3], tensors[3:])))


def attend_in_parts(query, key, value, lengths, **options):
    parts = [
        memory_efficient_attention_partial(query, keys, values, **options)
        for keys, values in zip(key.split(lengths, 1), value.split(lengths, 1), strict=True)
    ]
    return merge_attentions([out for out, _ in parts], [lse for _, lse in parts])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("heads", [(4,), (2, 3)], ids=["BMHK", "BMGHK"])
def test_parts_merged_are_the_whole_with_all_gradients(heads, dtype):
    generator = torch.Generator().manual_seed(3)
    inputs = [
        torch.randn(2, length, *heads, 8, generator=generator, dtype=dtype).requires_grad_()
        for length in (6, 20, 20)
    ]
    whole = memory_efficient_attention_partial(*inputs)
    parts = attend_in_parts(*inputs, [7, 0, 1, 12])
    close = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 0, "atol": 1e-5}
    assert_close(parts, whole, **close)
    weights = [torch.randn(result.shape, generator=generator, dtype=dtype) for result in whole]
    found, expected = (
        torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, pair, strict=True)), inputs)
        for pair in (parts, whole)
    )
    assert_close(found, expected, **close)


def test_merge_of_merges_is_the_merge():
    outs, lses = make_chunks(chunks=6)
    halves = [merge_attentions(outs[i : i + 3], lses[i : i + 3]) for i in (0, 3)]
    merged = merge_attentions([out for out, _ in halves], [lse for _, lse in halves])
    assert_close(merged, merge_attentions(outs, lses))


def test_chunk_merged_with_itself():
    (out,), (lse,) = make_chunks(chunks=1)
    merged, merged_lse = merge_attentions([out, out], [lse, lse])
    assert_close(merged, out)
    assert_close(merged_lse, lse + torch.log(torch.tensor(2.0, dtype=torch.float64)))


@pytest.mark.parametrize("shape", [(0, 5, 3, 8), (2, 0, 3, 8), (2, 5, 0, 8)])
def test_no_rows(shape):
    outs, lses = make_chunks(shape=shape)
    outs = with_gradient(outs)
    out, lse = merge_attentions(outs, lses)
    assert out.shape == shape
    assert lse.shape == lses[0].shape
    assert torch.autograd.grad(out.sum(), outs[0])[0].shape == shape


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.tuples(*[st.integers(1, 4)] * 2, st.integers(1, 40), st.integers(1, 140)),
    st.sampled_from(DTYPES),
    st.floats(0.0, 0.9),
    st.integers(0, 2**16),
)
def test_random_chunks(chunks, shape, dtype, emptiness, seed):
    outs, lses = make_chunks(chunks, shape, dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    for out, lse in zip(outs, lses, strict=True):
        empty = torch.rand(lse.shape, generator=generator) < emptiness
        lse.masked_fill_(empty, -INF)
        out.masked_fill_(empty.movedim(-1, 1).unsqueeze(-1), float("nan"))
    outs, lses = with_gradient(outs), with_gradient(lses)
    found, expected = merge_attentions(outs, lses), expected_merge(outs, lses)
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours.double(), theirs, **tolerance(ours.dtype))

    # Numbers that every dtype holds, as a gradient takes the output's.
    weights = [torch.randint(-8, 9, x.shape, generator=generator) / 8 for x in found]
    gradients = [
        torch.autograd.grad(
            (out * weights[0]).sum() + lse.masked_fill(lse == -INF, 0.0).mul(weights[1]).sum(),
            [*outs, *lses],
        )
        for out, lse in (found, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        close = tolerance(ours.dtype)
        close["atol"] *= 8  # an LSE's gradient is a sum over the width
        assert_close(ours, theirs.masked_fill(theirs.isnan(), 0.0), **close)


def float_chunks(**options):
    return make_chunks(dtype=torch.float32, **options)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (([], []), "at least one chunk in attn_split"),
        ((torch.zeros(0, 2, 5, 3, 8), torch.zeros(0, 2, 3, 5)), "at least one chunk"),
        ((float_chunks()[0], float_chunks()[1][:2]), "as many chunks in lse_split as in attn_spl"),
        (([torch.zeros(2, 5, 8)], [torch.zeros(2, 5)]), r"expected chunks \[B, M, H, K\]"),
        ((torch.stack(float_chunks()[0]), float_chunks()[1][0]), "as many chunks"),
        (
            (float_chunks()[0], float_chunks(shape=(2, 4, 3, 8))[1]),
            r"lse_split\[0\] of shape \[2, 3, 5\]",
        ),
        (
            ([*float_chunks()[0][:2], torch.zeros(2, 5, 2, 8)], float_chunks()[1]),
            r"attn_split\[2\] of shape \[2, 5, 3, 8\], as the first",
        ),
        (
            (torch.stack(float_chunks()[0]), torch.zeros(3, 2, 5, 3)),
            r"every chunk of lse_split of shape \[2, 3, 5\]",
        ),
        (
            ([*float_chunks()[0][:2], torch.zeros(2, 5, 3, 8).half()], float_chunks()[1]),
            r"attn_split\[2\] of torch.float32",
        ),
        (([x.int() for x in float_chunks()[0]], float_chunks()[1]), "attn_split of float32"),
        ((float_chunks()[0], [x.int() for x in float_chunks()[1]]), "a floating-point lse_split"),
        (([torch.zeros(1, 1, 1, 1)] * 1025, [torch.zeros(1, 1, 1)] * 1025), "at most 1024 chunks"),
    ],
)
def test_wrong_chunks_are_refused_by_name(split, message):
    with pytest.raises(ValueError, match=message):
        merge_attentions(*split)


def test_wrong_arguments_are_refused():
    outs, lses = float_chunks()
    with pytest.raises(ValueError, match=r"output_dtype to be one of torch\.float32"):
        merge_attentions(outs, lses, output_dtype=torch.float64)
    with pytest.raises(ValueError, match=r"output_dtype to be one of torch\.float64"):
        merge_attentions(*make_chunks(), output_dtype=torch.float32)
    with pytest.raises(TypeError, match="attn_split to be a tensor or a sequence of tensors"):
        merge_attentions([out.numpy() for out in outs], lses)
    with pytest.raises(NotImplementedError, match="expected CPU or CUDA tensors"):
        merge_attentions([x.to("meta") for x in outs], [x.to("meta") for x in lses])
