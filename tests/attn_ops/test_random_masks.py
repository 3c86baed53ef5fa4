"""Random masks of every class in random layouts, forward and every gradient, against brute force.

What is not seen holds NaN; what is refused is refused by a documented exception.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from attn_ops import fmha
from attn_ops._canonical import canonical
from attn_ops.fmha import attn_bias as masks
from reference import mask_spec
from reference.philox import keep_factors

SMALL = st.integers(0, 4)
WINDOW = st.integers(1, 4)
DTYPES = st.sampled_from([torch.float64, torch.float64, torch.float32, torch.bfloat16])
TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-4, torch.bfloat16: 8e-2}


@dataclass
class Call:
    """The arguments of one call, and the sizes of its canonical form."""

    mask: Any
    num_queries: int
    num_keys: int
    ndim: int
    groups: int
    heads: int
    dtype: torch.dtype
    softcap: float | None
    has_sink: bool
    p: float
    seed: int

    @property
    def is_packed(self):
        return (
            self.mask is not None
            and not isinstance(self.mask, torch.Tensor)
            and (self.mask.mask_spec().sequences is not None)
        )

    @property
    def batch(self):
        return 1 if self.is_packed else 1 + self.seed % 2

    @property
    def query_heads(self):
        return {3: 1, 4: self.groups * self.heads, 5: self.groups * self.heads}[self.ndim]


def rand(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def dense_masks(draw, most):
    """Draw a mask without sequences, the number of queries and of keys."""
    num_queries, num_keys = draw(st.integers(0, 2 * most)), draw(st.integers(0, 2 * most))
    size = draw(st.integers(1, most))
    rows, columns = -(-num_queries // size), -(-num_keys // size)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    pattern = torch.rand(rows, columns, generator=generator) > 0.4
    mask = draw(
        st.sampled_from(
            [
                masks.LowerTriangularMask(),
                masks.LowerTriangularFromBottomRightMask(),
                masks.LowerTriangularFromBottomRightMask().make_local_attention(draw(WINDOW)),
                masks.LocalAttentionFromBottomRightMask(draw(SMALL), draw(SMALL)),
                masks.BlockSparseMask.from_pattern(pattern, size, causal=draw(st.booleans())),
                None,
            ]
        )
    )
    return mask, num_queries, num_keys


@st.composite
def lengths(draw, most):
    """Draw the numbers of queries and of keys of one to four sequences."""
    q = draw(st.lists(st.integers(0, most), min_size=1, max_size=4))
    return q, draw(st.lists(st.integers(0, most), min_size=len(q), max_size=len(q)))


@st.composite
def block_diagonal_masks(draw, most):
    """Draw a mask of packed sequences."""
    q, k = draw(lengths(most))
    mask = masks.BlockDiagonalMask.from_seqlens(q, k)
    kind = draw(st.sampled_from(["full", "causal", "from_bottomright", "local", "local_right"]))
    window = draw(WINDOW)
    if kind == "causal":
        mask = mask.make_causal()
    elif kind == "local" and all(a - window < b for a, b in zip(q, k, strict=True)):
        mask = mask.make_local_attention(window)
    elif all(a <= b for a, b in zip(q, k, strict=True)):
        if kind == "from_bottomright":
            mask = mask.make_causal_from_bottomright()
        elif kind == "local_right":
            mask = mask.make_local_attention_from_bottomright(window)
    return mask, sum(q), sum(k)


PAGED = {
    masks.BlockDiagonalPaddedKeysMask: masks.PagedBlockDiagonalPaddedKeysMask,
    masks.BlockDiagonalCausalWithOffsetPaddedKeysMask: (
        masks.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask
    ),
    masks.BlockDiagonalCausalLocalAttentionPaddedKeysMask: (
        masks.PagedBlockDiagonalCausalLocalPaddedKeysMask
    ),
}


@st.composite
def padded_masks(draw, most):
    """Draw a mask of padded keys, in pages or not."""
    q, k = draw(lengths(most))
    window = draw(WINDOW)
    local = masks.BlockDiagonalCausalLocalAttentionPaddedKeysMask
    two_sided = masks.BlockDiagonalLocalAttentionPaddedKeysMask
    mask = draw(
        st.sampled_from(
            [
                masks.BlockDiagonalPaddedKeysMask.from_seqlens(q, most, k),
                masks.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(q, most, k),
                local.from_seqlens_local(q, most, k, window),
                two_sided.from_seqlens_local(q, most, k, window, draw(SMALL)),
            ]
        )
    )
    if type(mask) not in PAGED or draw(st.booleans()):
        return mask, sum(q), most * len(q)
    tables, size, num_pages = draw(page_tables(len(q), most))
    return mask.make_paged(tables, size, PAGED[type(mask)]), sum(q), num_pages * size


@st.composite
def page_tables(draw, count, most):
    """Draw tables of shuffled and shared pages for `most` keys, their size, and how many exist."""
    size = draw(st.sampled_from([1, 2, 4, 7, 16]))
    pages = -(-most // size)
    num_pages = draw(st.integers(pages, pages * count + 1))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    rows = [torch.randperm(num_pages, generator=generator)[:pages] for _ in range(count)]
    return torch.stack(rows).to(torch.int32), size, num_pages


@st.composite
def gappy_masks(draw, most):
    """Draw a mask of keys with gaps, in pages or not."""
    q, k = draw(lengths(most - 1))
    first = draw(st.lists(st.integers(0, 1), min_size=len(q), max_size=len(q)))
    if draw(st.booleans()):
        tables, size, num_pages = draw(page_tables(len(q), most))
        paged = draw(
            st.sampled_from(
                [
                    masks.PagedBlockDiagonalGappyKeysMask,
                    masks.PagedBlockDiagonalCausalWithOffsetGappyKeysMask,
                ]
            )
        )
        return paged.from_seqlens(q, first, k, tables, size), sum(q), num_pages * size
    starts = [most * b + at for b, at in enumerate(first)] + [most * len(q)]
    local = masks.BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask
    mask = draw(
        st.sampled_from(
            [
                masks.BlockDiagonalGappyKeysMask.from_seqlens(q, starts, k),
                masks.BlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens(q, starts, k),
                local.from_seqlens_local_gappy(q, starts, k, draw(SMALL), draw(SMALL)),
            ]
        )
    )
    return mask, sum(q), most * len(q)


@st.composite
def calls(draw):
    """Draw a call with a mask of any kind, and what is added to it."""
    most = draw(st.sampled_from([4] * 9 + [90]))  # keys of a sequence; 90 fill several tiles
    families = (dense_masks, block_diagonal_masks, padded_masks, gappy_masks)
    mask, num_queries, num_keys = draw(st.one_of(*(family(most) for family in families)))
    call = Call(
        mask=mask,
        num_queries=num_queries,
        num_keys=num_keys,
        ndim=draw(st.sampled_from([3, 4, 4, 5, 5])),
        groups=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 3)),
        dtype=draw(DTYPES),
        softcap=draw(st.sampled_from([None, None, 1.5])),
        has_sink=draw(st.booleans()),
        p=draw(st.sampled_from([0.0, 0.0, 0.4])),
        seed=draw(st.integers(0, 2**16)),
    )
    for kind in draw(st.sets(st.sampled_from(["tensor", "slopes", "table"]))):
        call = replace(call, mask=add(draw, call, kind))
    return call


def add(draw, call, kind):
    dtype = draw(st.sampled_from([call.dtype, torch.float32]))
    heads = call.query_heads
    if kind == "slopes":
        bias = masks.AlibiBias(rand(1, heads).to(dtype).requires_grad_())
    elif kind == "table":
        radius = draw(st.integers(0, 3))
        bias = masks.RelativePositionBias(rand(2, heads, 2 * radius + 1).to(dtype).requires_grad_())
    else:
        axes = {3: [], 4: [heads], 5: [call.groups, call.heads]}[call.ndim]
        full = [call.batch, *axes, call.num_queries, call.num_keys]
        shape = [draw(st.sampled_from([1, extent])) for extent in full]
        bias = rand(3, *shape).to(dtype)
        bias = bias > -0.5 if draw(st.booleans()) else bias.requires_grad_()
    if call.mask is None:
        return bias
    if isinstance(call.mask, torch.Tensor):
        return bias.add_bias(call.mask)
    return call.mask.add_bias(bias)


def make_tensors(call):
    """Return query, key, value and sink in the call's layout; NaN in slots that nobody sees."""
    group_heads = {3: [], 4: [call.query_heads], 5: [call.groups, call.heads]}[call.ndim]
    key_heads = {3: [], 4: [call.groups], 5: [call.groups, call.heads]}[call.ndim]
    query = rand(10, call.batch, call.num_queries, *group_heads, 8)
    key = rand(11, call.batch, call.num_keys, *key_heads, 8)
    value = rand(12, call.batch, call.num_keys, *key_heads, 5)
    if call.ndim == 5 and call.seed % 3 == 0:
        key, value = (x[:, :, :, :1].expand_as(x) for x in (key, value))
    sink = rand(13, call.query_heads) if call.has_sink else None
    if sink is not None and call.ndim == 5 and call.seed % 5 == 0:
        sink = sink.unflatten(0, (call.groups, call.heads))
    inputs = [x.to(call.dtype).requires_grad_() for x in (query, key, value)]
    return *inputs, None if sink is None else sink.to(call.dtype).requires_grad_()


def brute_force(call, query, key, value, sink, dropout):
    """Return the output of canonical float64 inputs, differentiable in all of them."""
    views = canonical(fmha.Inputs(query, key, value, call.mask, sink=sink, softcap=call.softcap))
    query, key, value = (x.double() for x in (views.query, views.key, views.value))
    sizes = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    repeats = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(repeats, dim=2) for x in (key, value))
    scores = query.shape[-1] ** -0.5 * torch.einsum("bihk,bjhk->bhij", query, key)
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    seen = mask_spec.allowed(views.mask, *sizes)
    scores = (scores + mask_spec.bias(views.mask, *sizes)).masked_fill(~seen, -math.inf)
    if views.mask.sink is not None:
        sink_scores = views.mask.sink.double()[None, :, None, None].expand(*sizes[:3], 1)
        weights = torch.cat([scores, sink_scores], -1).softmax(-1)[..., :-1]
    else:
        empty = ~seen.any(-1, keepdim=True)
        weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    if call.p:
        place = mask_spec.places(views.mask, *sizes[2:]).key.clamp(min=0).expand(sizes)
        factors = keep_factors((*sizes[:3], max(sizes[3], 1)), call.p, *dropout)
        weights = weights * factors.gather(-1, place)
    return torch.einsum("bhij,bjhv->bihv", weights, value), seen


def parameters(call):
    """Return the tensors of the mask that want a gradient."""
    if call.mask is None or isinstance(call.mask, torch.Tensor):
        found = [call.mask]
    else:
        spec = call.mask.mask_spec()
        found = [spec.bias, spec.relative.slopes, spec.relative.table]
    return [x for x in found if x is not None and x.requires_grad]


def poisoned(tensor, seen):
    """Return a leaf equal to `tensor`, NaN in the slots that no query of any head sees."""
    unseen = ~seen.any(1).any(1)  # [B, Mkv]
    mask = unseen.reshape(*unseen.shape, *[1] * (tensor.dim() - 2))
    return tensor.detach().masked_fill(mask, math.nan).requires_grad_()


def assert_near(found, expected, dtype):
    expected = expected.double()
    largest = expected.abs().max().item() if expected.numel() else 0.0
    tolerance = TOLERANCE[dtype] * max(1.0, largest)
    assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(call=calls())
def test_random_mask_gives_what_brute_force_gives(call):
    query, key, value, sink = make_tensors(call)
    torch.manual_seed(call.seed)
    dropout = torch.randint(2**62, (2,)).tolist()
    leaves = [query, key, value, *([] if sink is None else [sink]), *parameters(call)]
    expected, seen = brute_force(call, query, key, value, sink, dropout)
    cotangent = rand(20, *expected.shape)
    expected_gradients = torch.autograd.grad((expected * cotangent).sum(), leaves)

    clean = (poisoned(key, seen), poisoned(value, seen))
    leaves = [query, *clean, *leaves[3:]]
    torch.manual_seed(call.seed)
    out = fmha.memory_efficient_attention(
        query, *clean, call.mask, call.p, sink=sink, softcap=call.softcap
    )
    assert out.shape == (*query.shape[:-1], 5)
    assert out.dtype == call.dtype
    assert_near(out.reshape(expected.shape), expected, call.dtype)
    found = torch.autograd.grad(out, leaves, cotangent.reshape(out.shape).to(out.dtype))
    for gradient, right, leaf in zip(found, expected_gradients, leaves, strict=True):
        assert gradient.shape == leaf.shape
        assert gradient.dtype == leaf.dtype
        assert_near(gradient, right, call.dtype)


SPOILS = {
    "batch": lambda q, k, v: (q.repeat_interleave(2, 0), k.repeat_interleave(2, 0), v),
    "one query less": lambda q, k, v: (q[:, 1:], k, v),
    "one key less": lambda q, k, v: (q, k[:, 1:], v[:, 1:]),
    "key and value": lambda q, k, v: (q, k[:, 1:], v),
    "heads": lambda q, k, v: (q[:, :, :0], k, v),
    "dtype": lambda q, k, v: (q, k.half(), v),
    "device": lambda q, k, v: (q, k.to("meta"), v),
    "integers": lambda q, k, v: (q.int(), k.int(), v.int()),
    "all meta": lambda q, k, v: (q.to("meta"), k.to("meta"), v.to("meta")),
    "two axes": lambda q, k, v: (q.flatten(1), k.flatten(1), v.flatten(1)),
}


@pytest.mark.parametrize("spoil", SPOILS)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(call=calls())
def test_what_does_not_fit_is_refused_by_a_documented_exception(spoil, call):
    query, key, value, sink = make_tensors(call)
    options = {"p": call.p, "sink": sink, "softcap": call.softcap}
    try:
        inputs = SPOILS[spoil](query, key, value)
        out = fmha.memory_efficient_attention(*inputs, call.mask, **options)
    except (ValueError, TypeError, NotImplementedError) as refusal:
        assert "memory_efficient_attention" in str(refusal)  # noqa: PT017  either outcome is right
    else:
        assert out.shape == (*inputs[0].shape[:-1], 5)
        assert out.isfinite().all()
