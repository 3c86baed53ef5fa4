"""FAVOR+ against its definition, its causal form against leaks, and its estimates."""

import functools
import math

import pytest
import torch
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from attn_modules import FavorAttention, FeatureMapType, ScaledDotProduct, build_attention
from attn_modules.mechanisms.favor import default_dim_features
from reference.modules.kernel_attention import kernel_attention, relu_features, softmax_features

TYPES = [feature_map.value for feature_map in FeatureMapType]
of_each_type = pytest.mark.parametrize("feature_map_type", TYPES)
causal_or_not = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])


def qkv(queries, keys, seed=0, dtype=torch.float64, width=6):
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, 3, queries, width), (2, 3, keys, width), (2, 3, keys, 5)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


def expected_of(attention, q, k, v, keep=None):
    """Return the definition's results, matrix by matrix."""
    vectors, kind = attention.feature_map.features, attention.feature_map_type
    if kind == FeatureMapType.ReLU:
        features = functools.partial(relu_features, vectors=vectors)
    else:
        both_signs = kind != FeatureMapType.SMOrf
        features = functools.partial(softmax_features, vectors=vectors, both_signs=both_signs)
    return torch.stack(
        [
            torch.stack(
                [
                    kernel_attention(
                        *(x[b, h] for x in (q, k, v)),
                        features,
                        causal=attention.causal,
                        keep=None if keep is None else keep[b],
                    )
                    for h in range(q.shape[1])
                ]
            )
            for b in range(q.shape[0])
        ]
    )


def keep_of(keys):
    keep = torch.rand(2, keys, generator=torch.Generator().manual_seed(5)) > 0.4
    keep[1, : min(3, keys)] = False
    return keep


@pytest.fixture(params=[(4, 1), (4, 48)], ids=["chunks", "blocks"])
def small_chunks(request, monkeypatch):
    """Make a few rows as many chunks, one or two of them a block."""
    chunk, block = request.param
    monkeypatch.setattr("attn_modules._features.prefix_sums.CHUNK_ROWS", chunk)
    monkeypatch.setattr("attn_modules._features.prefix_sums.BLOCK_ROWS", block)
    monkeypatch.setattr("attn_modules._features.total_sums.CHUNK_ROWS", chunk)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(("queries", "keys"), [(19, 19), (16, 16), (3, 7), (9, 5), (1, 1)])
@causal_or_not
@of_each_type
def test_output_and_gradients(feature_map_type, causal, queries, keys, padded):
    attention = FavorAttention(
        causal, dim_features=8, dim_head=6, feature_map_type=feature_map_type, seed=0
    ).double()
    operands = [x.requires_grad_() for x in qkv(queries, keys)]
    keep = keep_of(keys) if padded else None
    expected = expected_of(attention, *operands, keep)
    out = attention(*operands, key_padding_mask=keep)
    assert_close(out, expected)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    ours, theirs = (torch.autograd.grad(y, operands, weight) for y in (out, expected))
    assert_close(ours, theirs)
    folded = attention(*(x.flatten(0, 1) for x in operands), key_padding_mask=keep)
    assert_close(folded, expected.flatten(0, 1))


@causal_or_not
def test_lengths_of_many_chunks(causal):
    attention = FavorAttention(causal, dim_features=8, dim_head=6, seed=0).double()
    q, k, v = qkv(600, 600)
    phi_q, phi_k = (
        softmax_features(x, attention.feature_map.features, both_signs=True) for x in (q, k)
    )
    weights = phi_q @ phi_k.mT
    weights = weights.tril() if causal else weights
    assert_close(attention(q, k, v), weights / weights.sum(-1, keepdim=True) @ v)


@of_each_type
def test_gradients_by_differences(feature_map_type):
    for causal in (False, True):
        attention = FavorAttention(
            causal, dim_features=4, dim_head=6, feature_map_type=feature_map_type, seed=0
        ).double()
        operands = [x[:1, :1].requires_grad_() for x in qkv(7, 7)]
        assert torch.autograd.gradcheck(attention, operands)


@of_each_type
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, 3.0])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["q", "k", "v"])
def test_no_row_knows_later_ones(which, bad, feature_map_type):
    # 200 rows are three chunks and a part, and row 100 lies within the second.
    attention = FavorAttention(
        True, dim_features=8, dim_head=6, feature_map_type=feature_map_type, seed=0
    )
    operands = qkv(200, 200, dtype=torch.float32)
    before = attention(*operands)
    operands[which][..., 100:, :] = bad
    after = attention(*operands)
    assert torch.equal(after[..., :100, :], before[..., :100, :])
    assert not torch.equal(after[..., 100:, :], before[..., 100:, :])


@causal_or_not
@of_each_type
def test_padding_changes_nothing_even_where_it_is_nan(feature_map_type, causal):
    attention = FavorAttention(
        causal,
        dim_features=8,
        dim_head=6,
        feature_map_type=feature_map_type,
        normalize_inputs=True,
        seed=0,
    )
    keep = keep_of(90)
    found = []
    for filling in (0.0, math.nan, math.inf, 1e20):
        operands = qkv(90, 90, dtype=torch.float32)
        for x in operands[1:]:
            x.masked_fill_(~keep[:, None, :, None], filling)
        operands = [x.requires_grad_() for x in operands]
        out = attention(*operands, key_padding_mask=keep)
        found.append((out, *torch.autograd.grad(out.square().sum(), operands)))
    for other in found[1:]:
        for x, y in zip(found[0], other, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("normalize_inputs", [False, True])
@pytest.mark.parametrize("feature_map_type", ["sm_orf", "sm_hyp", "sm_reg"])
@causal_or_not
def test_estimates_are_near_softmax_attention(causal, feature_map_type, normalize_inputs):
    # The tolerances of xFormers' own test.
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 100, 10) for _ in range(3))
    attention = FavorAttention(
        causal,
        dim_head=10,
        feature_map_type=feature_map_type,
        normalize_inputs=normalize_inputs,
        seed=0,
    )
    error = (attention(q, k, v) - ScaledDotProduct(causal=causal)(q, k, v)).square().mean()
    assert error < (0.6 if causal else 0.23)


def test_more_features_estimate_better():
    q, k, v = (x * 0.5 for x in qkv(128, 128))
    exact = ScaledDotProduct()(q, k, v)

    def error(dim_features):
        attention = FavorAttention(
            dim_features=dim_features, dim_head=6, feature_map_type="sm_orf", seed=0
        )
        attention.double()
        return (attention(q, k, v) - exact).norm() / exact.norm()

    assert error(2048) < 0.1
    assert error(2048) < 0.5 * error(32)


@causal_or_not
@of_each_type
def test_long_rows_stay_finite(feature_map_type, causal):
    attention = FavorAttention(
        causal, dim_features=64, dim_head=6, feature_map_type=feature_map_type, seed=0
    )
    for scale in (20, 1e3, 1e6):
        q, k, v = qkv(300, 300, dtype=torch.float32)
        operands = [(q * scale).requires_grad_(), (k * scale).requires_grad_(), v.requires_grad_()]
        out = attention(*operands)
        assert out.isfinite().all()
        assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), operands))
        assert out.abs().max() <= v.abs().max() * 1.001


@causal_or_not
@pytest.mark.parametrize("feature_map_type", ["sm_orf", "sm_hyp", "sm_reg"])
def test_sums_over_many_long_rows_alike_do_not_overflow(feature_map_type, causal):
    attention = FavorAttention(causal, dim_head=64, feature_map_type=feature_map_type, seed=0)
    row = 20 * torch.randn(64, generator=torch.Generator().manual_seed(0))
    q = row.expand(1, 1, 1024, 64).clone().requires_grad_()
    v = (1e4 * torch.ones(1, 1, 1024, 5)).requires_grad_()
    out = attention(q, q, v)
    assert_close(out, v)
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), (q, v)))


@of_each_type
def test_steps_do_as_the_whole(feature_map_type):
    attention = FavorAttention(
        True, dim_features=8, dim_head=6, feature_map_type=feature_map_type, seed=0
    ).double()
    q, k, v = qkv(70, 70)
    whole = attention(q, k, v)
    state, outs = None, []
    for i in range(70):
        out, state = attention.step(*(x[..., i : i + 1, :] for x in (q, k, v)), state)
        assert all(isinstance(x, torch.Tensor) for x in state)
        outs.append(out)
    assert_close(torch.cat(outs, -2), whole)


def test_steps_go_on_after_a_prompt_and_leave_its_state_as_it_was():
    attention = FavorAttention(True, dim_features=8, dim_head=6, seed=0).double()
    q, k, v = qkv(80, 80)
    keep = keep_of(67)
    whole = attention(q, k, v, key_padding_mask=torch.cat((keep, keep.new_ones(2, 13)), 1))
    out, prompt = attention.prefill(*(x[..., :67, :] for x in (q, k, v)), key_padding_mask=keep)
    assert_close(out, whole[..., :67, :])
    copies = [x.clone() for x in prompt]
    state = prompt
    for i in range(67, 80):
        row = (x[..., i : i + 1, :].flatten(0, 1) for x in (q, k, v))
        out, state = attention.step(*row, state)
        assert_close(out, whole[..., i : i + 1, :].flatten(0, 1))
    assert all(torch.equal(x, y) for x, y in zip(prompt, copies, strict=True))


def test_steps_have_gradients():
    attention = FavorAttention(True, dim_features=4, dim_head=6, seed=0).double()

    def two_steps(q, k, v):
        _, state = attention.step(q[:, :1], k[:, :1], v[:, :1])
        return attention.step(q[:, 1:], k[:, 1:], v[:, 1:], state)[0]

    operands = [x[0, :, :2].requires_grad_() for x in qkv(2, 2)]
    assert torch.autograd.gradcheck(two_steps, operands)
    whole = attention(*operands)[:, 1:]
    ours, theirs = (
        torch.autograd.grad(y.square().sum(), operands) for y in (two_steps(*operands), whole)
    )
    assert_close(ours, theirs)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_half_precision_sums_in_float32(dtype, atol):
    q, k, v = qkv(3000, 3000, dtype=dtype)
    attention = FavorAttention(True, dim_features=16, dim_head=6, seed=0)
    out = attention(q, k, v)
    assert out.dtype == dtype
    assert_close(out.float(), attention(q.float(), k.float(), v.float()), atol=atol, rtol=atol)
    with torch.autocast("cpu", torch.bfloat16):
        single = attention(*(x.float() for x in (q, k, v)))
    assert torch.equal(single, attention(*(x.float() for x in (q, k, v))))


def test_redrawing_between_passes_keeps_the_gradients_of_the_first():
    q, k, v = (x.requires_grad_() for x in qkv(20, 20))
    attention = FavorAttention(
        True, dim_features=8, dim_head=6, iter_before_redraw=1, seed=0
    ).double()
    first = attention(q, k, v)
    expected = expected_of(attention, q, k, v)
    assert not torch.equal(attention(q, k, v), first)
    ours, theirs = (torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (first, expected))
    assert_close(ours, theirs)


def test_compiled_training_redraws():
    q, k, v = qkv(20, 20, dtype=torch.float32)
    one, other = (
        FavorAttention(True, dim_features=8, dim_head=6, iter_before_redraw=2, seed=0)
        for _ in range(2)
    )
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for _ in range(5):
        assert_close(compiled(q, k, v), one(q, k, v))
    assert int(other.feature_map.num_calls) == 5
    assert torch.equal(one.feature_map.features, other.feature_map.features)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("is_compiled", [True, False])
def test_what_checkpointing_computes_again_has_the_features_of_the_call(use_reentrant, is_compiled):
    plain, again = (
        FavorAttention(dim_features=8, dim_head=6, iter_before_redraw=2, seed=0) for _ in range(2)
    )
    call = torch.compile(again, backend="aot_eager") if is_compiled else again
    for _ in range(3):
        q, k, v = qkv(20, 20, dtype=torch.float32)
        ours, theirs = q.clone().requires_grad_(), q.requires_grad_()
        plain(theirs, k, v).square().sum().backward()
        checkpoint(call, ours, k, v, use_reentrant=use_reentrant).square().sum().backward()
        assert_close(ours.grad, theirs.grad)
    assert int(again.feature_map.num_calls) == 3
    assert torch.equal(again.feature_map.features, plain.feature_map.features)


def test_dropout_drops_results_in_training_alone():
    q, k, v = qkv(50, 50)
    attention = FavorAttention(dropout=0.5, dim_features=8, dim_head=6, seed=0).double()
    kept = attention(q, k, v)
    whole = attention.eval()(q, k, v)
    assert 0.4 < (kept == 0).double().mean() < 0.6
    assert_close(kept[kept != 0], 2 * whole[kept != 0])


def test_default_number_of_features():
    assert default_dim_features(64) == 448
    assert FavorAttention(dim_head=64).feature_map.features.shape == (64, 224)
    assert FavorAttention(dim_head=64, feature_map_type="sm_orf").feature_map.features.shape == (
        64,
        448,
    )
    assert default_dim_features(10) == 44


def test_configurations_reach_every_option():
    attention = build_attention(
        {
            "name": "favor",
            "dim_features": 12,
            "dim_head": 6,
            "feature_map_type": "sm_hyp",
            "iter_before_redraw": 3,
            "normalize_inputs": True,
            "causal": True,
            "dropout": 0.1,
            "seed": 4,
        }
    )
    assert isinstance(attention, FavorAttention)
    assert attention.feature_map_type is FeatureMapType.SMHyp
    assert attention.feature_map.iter_before_redraw == 3
    assert attention.feature_map.normalize_inputs
    assert int(attention.feature_map.seed) == 4


def test_a_width_may_be_what_a_division_gives():
    attention, same = FavorAttention(dim_head=8 / 2, seed=0), FavorAttention(dim_head=4, seed=0)
    assert torch.equal(attention.feature_map.features, same.feature_map.features)


def test_arguments_that_do_not_fit_are_refused():
    q, k, v = qkv(4, 4, dtype=torch.float32)
    with pytest.raises(ValueError, match="expected dim_features or dim_head, got neither"):
        FavorAttention()
    with pytest.raises(ValueError, match="one of sm_orf, sm_hyp, sm_reg, relu, got 'sm'"):
        FavorAttention(dim_head=6, feature_map_type="sm")
    for dim_head in (0, -3, 2.5, "6"):
        with pytest.raises(ValueError, match=f"expected dim_head, an int of 1 .* got {dim_head!r}"):
            FavorAttention(dim_head=dim_head)
    with pytest.raises(NotImplementedError, match="expected no att_mask"):
        FavorAttention(dim_head=6)(q, k, v, att_mask=torch.ones(4, 4, dtype=torch.bool))
    for method in ("step", "prefill"):
        with pytest.raises(ValueError, match=rf"FavorAttention.{method}: expected causal=True"):
            getattr(FavorAttention(dim_head=6), method)(q, k, v)
    with pytest.raises(ValueError, match="step: expected one position, got 4 queries and 4 keys"):
        FavorAttention(True, dim_head=6).step(q, k, v)
    with pytest.raises(ValueError, match="prefill: expected as many keys as queries, got 3 keys"):
        FavorAttention(True, dim_head=6).prefill(q, k[..., :3, :], v[..., :3, :])


def test_graphs_need_features_that_are_drawn():
    q, k, v = (torch.zeros(1, 2, 5, 16) for _ in range(3))
    attention = FavorAttention(dim_features=8)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="give dim_head, or call once"):
        torch.compile(attention, fullgraph=True, backend="eager")(q, k, v)
    with pytest.raises(ValueError, match=r"SMReg: .* give dim_head, or call once"):
        torch.export.export(attention, (q, k, v))
    out = torch.compile(attention, backend="eager")(q, k, v)
    assert_close(out, attention(q, k, v))
    assert_close(torch.compile(attention, fullgraph=True, backend="eager")(q, k, v), out)


def test_heads_of_one_channel_have_features():
    assert default_dim_features(1) == 2
    q = torch.randn(1, 5, 1)
    assert FavorAttention(dim_head=1, seed=0)(q, q, q).isfinite().all()
