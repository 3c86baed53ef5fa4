"""Compositional attention against one search and retrieval at a time."""

import pytest
import torch
from torch.testing import assert_close

from attn_modules import CompositionalAttention
from reference.modules.compositional import compose

SCORES = {
    "linear": {},
    "linear-composed": {"q_compose": True},
    "network": {"nonlinear": True},
    "network-composed": {"nonlinear": True, "q_compose": True},
    "rule": {"qk_rule": True},
    "rule-composed": {"qk_rule": True, "q_compose": True},
}
WIDTHS = {
    "default": {},
    "more-rules": {"num_rules": 3, "dim_attn": 6, "dim_selection": 5},
    "other-keys": {"dim_key": 4, "dim_value": 12},
}
every_score = pytest.mark.parametrize("score", SCORES)


def build(score, **options):
    torch.manual_seed(0)
    return CompositionalAttention(
        8, 2, **{"use_separate_proj_weight": True, **SCORES[score], **options}
    ).double()


def qkv(queries=5, keys=5):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, length, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for length in (queries, keys, keys)
    ]


def assert_like_reference(attention, inputs, keep, **masks):
    out, expected = attention(*inputs, **masks), compose(attention, *inputs, keep)
    assert_close(out, expected)
    inputs = [*inputs, *attention.parameters()]
    weight = torch.randn(out.shape, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(y, inputs, weight) for y in (out, expected))
    assert_close(ours, theirs)


@every_score
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("causal", [False, True])
def test_output_and_gradients(score, widths, causal):
    attention = build(score, causal=causal, **WIDTHS[widths])
    keep = torch.ones(5, 7, dtype=torch.bool)
    assert_like_reference(attention, qkv(5, 7), keep.tril() if causal else keep)


def test_shared_weights():
    attention = build("rule", use_separate_proj_weight=False)
    assert len(list(attention.in_proj_container.parameters())) == 4
    x = qkv()[0]
    assert_close(attention(x, x, x), compose(attention, x, x, x))


@every_score
@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6), (4, 5, 6), (2, 2, 5, 6), (1, 2, 5, 6)])
def test_masks_and_padding(score, shape):
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(shape, generator=generator) < 0.7
    padding = torch.rand(2, 6, generator=generator) < 0.7
    by_head = mask.unflatten(0, (2, 2)) if shape[0] == 4 else mask
    by_head = by_head.unsqueeze(1) if shape == (2, 5, 6) else by_head
    assert_like_reference(
        build(score),
        qkv(5, 6),
        by_head & padding[:, None, None],
        att_mask=mask,
        key_padding_mask=padding,
    )


def test_padding_of_each_search():
    padding = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) < 0.7
    keep = padding.unflatten(0, (2, 2)).unsqueeze(2)
    assert_like_reference(build("rule"), qkv(5, 6), keep, key_padding_mask=padding)


@every_score
def test_padding_reaches_no_gradient(score):
    attention = build(score)
    q, k, v = qkv()
    keep = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 0]]).bool()
    dirty = [x.detach().masked_fill(~keep.unsqueeze(-1), torch.nan) for x in (k, v)]
    results = [
        torch.autograd.grad(
            attention(q, *others, key_padding_mask=keep).square().sum(),
            [q, *attention.parameters()],
        )
        for others in ((k, v), dirty)
    ]
    assert_close(*results)


@every_score
@pytest.mark.parametrize("content", [7.0, torch.nan])
def test_the_future_changes_nothing(score, content):
    attention = build(score, causal=True)
    x = qkv()[0].detach()
    expected = attention(x, x, x)
    for now in range(1, 5):
        changed = x.clone()
        changed[:, now:] = content
        assert torch.equal(attention(*[changed] * 3)[:, :now], expected[:, :now])


@every_score
def test_batch_elements_and_positions_are_apart(score):
    attention = build(score)
    q, k, v = (x.detach() for x in qkv())
    out = attention(q, k, v)
    assert_close(attention(q[1:], k[1:], v[1:]), out[1:])
    order = torch.tensor([3, 0, 4, 1, 2])
    assert_close(attention(q[:, order], k, v), out[:, order])


def test_dropout_drops_a_probability_for_all_rules():
    torch.manual_seed(0)
    attention = CompositionalAttention(8, 2, dropout=0.5, qk_rule=True)
    q, k, v = (x.detach().float() for x in qkv(40, 1))
    first = attention(q, k, v)
    # One key has all the probability: dropped, nothing is left but the bias.
    is_dropped = ~(first - attention.out_proj.bias).abs().gt(1e-6).any(-1)
    assert 0 < is_dropped.sum() < is_dropped.numel()
    assert torch.equal(attention.eval()(q, k, v), attention(q, k, v))


def test_widths_that_do_not_fit_are_refused():
    for options in ({"num_heads": 3}, {"num_rules": 3}, {"dim_key": 5}):
        with pytest.raises(ValueError, match="expected dim_key to be a multiple of num_heads"):
            CompositionalAttention(**{"dim_model": 8, "num_heads": 2, **options})
    with pytest.raises(ValueError, match="expected dim_value to be dim_attn"):
        CompositionalAttention(8, 2, dim_attn=8, dim_value=4)
    with pytest.raises(ValueError, match="weights of one shape"):
        CompositionalAttention(8, 2, dim_value=4)
    with pytest.raises(ValueError, match=r"q, k and v \[B, M, 8\]"):
        build("rule")(*(x.unsqueeze(1) for x in qkv()))
    q, k, v = qkv()
    for inputs in ((q[:1], k, v), (q, k[:, 1:], v)):
        with pytest.raises(ValueError, match=r"with one B and as many keys as values, got"):
            build("rule")(*inputs)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4)])
def test_padding_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match="expected key_padding_mask for B=2, H=2"):
        build("rule")(*qkv(), key_padding_mask=torch.ones(shape, dtype=torch.bool))
