"""What GPU kernels promise beside accuracy: dropout, canaries, long offsets, graphs, merging."""

import math
from dataclasses import replace

import pytest
import torch

import attn_ops as xops
from attn_ops import _native
from attn_ops.fmha.attn_bias import PagedBlockDiagonalCausalWithOffsetPaddedKeysMask as PagedMask
from gpu import device
from numerics import library, spec_cases
from numerics.cases import Case, Shape, make_problem
from reference.problem import Mask

QUERIES, KEYS = 130, 96


def identity_value(dropout: Mask):
    """Return a problem whose output is its matrix of probabilities."""
    problem = make_problem(Case(Shape(2, QUERIES, KEYS, 3, 3, 16, KEYS), "none", torch.float32))
    value = torch.eye(KEYS)[None, :, None].expand(2, KEYS, 3, KEYS)
    return replace(problem, value=value, mask=dropout)


def test_dropout_draws_what_the_cpu_draws():
    problem = identity_value(Mask(dropout_p=0.4, dropout_seed=2**63 + 5, dropout_offset=2**40))
    mine, _ = device.forward(problem)
    other, _ = library.forward(problem)
    assert torch.equal(mine.cpu() == 0, other == 0)


@pytest.mark.parametrize("canary", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["causal", "all"])
@pytest.mark.parametrize("place", spec_cases.PLACES)
def test_canary_in_keys_that_nobody_sees_reaches_no_result(place, part, canary):
    for dtype in device.DTYPES:
        call = spec_cases.make(place, part, dtype)
        poisoned = spec_cases.poisoned(call, canary)
        clean = spec_cases.run(device.on_device(call))
        for name, result in spec_cases.run(device.on_device(poisoned)).items():
            assert device.same_bits(result, clean[name]), f"{name} in {dtype}"


@pytest.mark.usefixtures("needs_cuda")
def test_bias_of_more_than_2_31_elements():
    """Rows of the last head lie beyond what 32 bits can count."""
    heads, length = 3, 27000
    bias = torch.zeros(1, heads, length, length, dtype=torch.float16, device=device.DEVICE)
    assert bias.numel() > 2**31
    torch.manual_seed(1)
    bias[:, -1, -64:] = torch.randn(64, length, dtype=torch.float16, device=device.DEVICE)
    query, key, value = torch.randn(
        3, 1, length, heads, 32, dtype=torch.float16, device=device.DEVICE
    )
    out = xops.memory_efficient_attention(query, key, value, bias)[:, -64:, -1:]
    rows = (query[:, -64:, -1:], key[:, :, -1:], value[:, :, -1:], bias[:, -1:, -64:].clone())
    torch.testing.assert_close(out, xops.memory_efficient_attention(*rows), rtol=0, atol=2e-3)


def paged_decoding(batch: int, page_size: int):
    most = 1300  # keys of more than one split
    lengths = [1 + 397 * i % most for i in range(batch)]
    pages = -(-most // page_size)
    tables = torch.randperm(batch * pages, device=device.DEVICE).view(batch, pages).int()
    mask = PagedMask.from_seqlens([1] * batch, lengths, tables, page_size, device=device.DEVICE)
    shape = (1, batch * pages * page_size, 2, 64)
    query = torch.randn(1, batch, 8, 64, device=device.DEVICE, dtype=torch.bfloat16)
    key, value = (torch.randn(shape, device=device.DEVICE, dtype=torch.bfloat16) for _ in "kv")
    return query, key, value, mask


@pytest.mark.parametrize("page_size", [1, 16, 128])
@pytest.mark.usefixtures("needs_cuda")
def test_decoding_is_captured_and_replayed(page_size):
    query, key, value, mask = paged_decoding(5, page_size)
    expected = xops.memory_efficient_attention_forward(query, key, value, mask)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = xops.memory_efficient_attention_forward(query, key, value, mask)
    for _ in range(3):
        out.fill_(math.nan)
        graph.replay()
        assert device.same_bits(out, expected)
    query.mul_(0.5)
    graph.replay()
    assert device.same_bits(out, xops.memory_efficient_attention_forward(query, key, value, mask))


@pytest.mark.usefixtures("needs_cuda")
def test_dropout_is_not_captured():
    query = torch.randn(1, 16, 2, 64, device=device.DEVICE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        query.neg_()  # of an empty graph torch warns
        with pytest.raises(ValueError, match="while a CUDA graph is captured"):
            xops.memory_efficient_attention(query, query, query, p=0.5)


@pytest.mark.usefixtures("needs_cuda")
def test_arrays_are_attended_on_their_frameworks_stream():
    problem = device.on_device(
        make_problem(Case(Shape(2, 3, 2300, 4, 2, 64, 64), "none", torch.float16))
    )
    inputs = (problem.query, problem.key, problem.value)
    stream = torch.cuda.Stream()
    for chosen in (None, stream.cuda_stream):
        out = torch.full_like(xops.memory_efficient_attention(*inputs), math.nan)
        needed = _native.attention_forward(*inputs, out, dry_run=True)
        with pytest.raises(ValueError, match=f"workspace to have {needed} bytes"):
            _native.attention_forward(*inputs, out)
        workspace = torch.empty(needed, dtype=torch.uint8, device=device.DEVICE)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10**8)  # whoever does not wait for this stream sees what was there
            inputs[0].neg_()
            _native.attention_forward(*inputs, out, workspace=workspace, stream=chosen)
        torch.cuda.synchronize()
        assert device.same_bits(out, xops.memory_efficient_attention(*inputs))


def test_chunks_merge_to_the_whole():
    problem = make_problem(Case(Shape(2, 33, 400, 4, 4, 64, 64), "none", torch.float32))
    there = device.on_device(problem)
    cuts = [slice(0, 150), slice(150, 151), slice(151, 400)]
    parts = [
        xops.memory_efficient_attention_forward_requires_grad(
            there.query, there.key[:, cut], there.value[:, cut], scale=problem.scale
        )
        for cut in cuts
    ]
    out, lse = xops.fmha.merge_attentions(*zip(*parts, strict=True))
    whole, whole_lse = device.forward(problem)
    torch.testing.assert_close(out, whole, rtol=0, atol=2e-6)
    torch.testing.assert_close(lse, whole_lse, rtol=0, atol=2e-6)
