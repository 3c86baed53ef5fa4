"""Random feature maps: how vectors are drawn, what they estimate, and when they are redrawn."""

import copy

import pytest
import torch
from torch.testing import assert_close

from attn_modules import FeatureMap, FeatureMapType
from attn_modules.feature_maps import (
    FEATURE_MAPS,
    ReLU,
    SMHyperbolic,
    SMOrf,
    SMReg,
    draw_vectors,
)
from reference.modules.kernel_attention import relu_features, softmax_features

SOFTMAX_MAPS = [SMOrf, SMHyperbolic, SMReg]
each = pytest.mark.parametrize("feature_map", SOFTMAX_MAPS, ids=lambda x: x.__name__)


def draw(dim_head, count, seed=0, *, random_lengths=False):
    generator = torch.Generator().manual_seed(seed)
    return draw_vectors(dim_head, count, random_lengths=random_lengths, generator=generator)


def rows(count, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("random_lengths", [False, True])
@pytest.mark.parametrize(("dim_head", "count"), [(8, 8), (8, 20), (8, 3), (5, 11), (1, 4)])
def test_vectors_of_a_block_are_orthogonal(dim_head, count, random_lengths):
    vectors = draw(dim_head, count, random_lengths=random_lengths)
    assert vectors.shape == (dim_head, count)
    for block in vectors.split(dim_head, 1):
        products = block.T @ block
        assert_close(products, products.diagonal().diag(), rtol=0, atol=1e-12)


def test_lengths_are_the_root_of_the_width_or_those_of_gaussian_vectors():
    assert_close(draw(9, 20).norm(dim=0), torch.full((20,), 3.0, dtype=torch.float64))
    squares = draw(9, 4000, random_lengths=True).square().sum(0)
    # chi squared with 9 degrees of freedom: mean 9, variance 18.
    assert squares.mean().sub(9).abs() < 4 * (18 / 4000) ** 0.5
    assert squares.var().sub(18).abs() < 3


def test_directions_are_uniform():
    # The traces of uniform orthogonal matrices have mean 0 and variance 1; those of LAPACK's have
    # another mean, as the signs of the diagonal of R are not random.
    blocks = draw(4, 4 * 1000).div(2).unflatten(1, (1000, 4))
    traces = torch.einsum("ibi->b", blocks)
    assert traces.mean().abs() < 4 / 1000**0.5
    assert traces.var().sub(1).abs() < 0.2


@pytest.mark.parametrize("feature_map", [SMOrf, SMHyperbolic], ids=lambda x: x.__name__)
def test_products_of_features_are_unbiased(feature_map):
    q, k = rows(2, 8) * 0.5
    found = []
    for seed in range(400):
        phi = feature_map(16, 8, seed=seed).double()
        found.append(phi(q) @ phi(k))
    found = torch.stack(found)
    expected = (q @ k / 8**0.5).exp()
    assert (found.mean() - expected).abs() < 4 * found.std() / 400**0.5
    assert found.std() / 400**0.5 < 0.05 * expected


@pytest.mark.parametrize(
    ("width", "dim_features", "slope", "error"), [(16, 1024, 0.68, 0.4), (64, 4096, 0.68, 0.7)]
)
def test_default_map_tells_products_apart(width, dim_features, slope, error):
    # Features whose rows have the right lengths instead of their vectors reach slopes of 0.004 and
    # 0.045 and errors of 0.84 and 0.88, when uniform attention has errors of 0.75.
    q, k = rows(256, width), rows(256, width, seed=1)
    scores = q @ k.T / width**0.5
    phi = SMReg(dim_features, width, seed=0).double()
    kernel = phi(q) @ phi(k).T
    centred = scores - scores.mean()
    assert slope < (kernel.log() * centred).sum() / centred.square().sum() < 1.1
    estimate = kernel / kernel.sum(-1, keepdim=True)
    assert (estimate - scores.softmax(-1)).abs().sum(-1).mean() < error


@each
def test_features_are_those_of_the_formula(feature_map):
    phi, x = feature_map(12, 5, seed=0).double(), rows(7, 5)
    expected = softmax_features(x, phi.features, both_signs=feature_map is not SMOrf)
    assert_close(phi(x), expected)
    assert phi(x).shape == (7, 12)


def test_relu_features_are_those_of_the_formula():
    phi, x = ReLU(12, 5, seed=0).double(), rows(7, 5)
    assert_close(phi(x), relu_features(x, phi.features))


def test_normalized_rows_have_the_length_of_the_root_of_the_width():
    phi, x = SMReg(4, 6, normalize_inputs=True), rows(3, 6).float()
    assert_close(phi.normalize(x).norm(dim=-1), torch.full((3,), 6**0.5))
    assert_close(phi(x), phi(5 * x))
    assert not phi.normalize(torch.zeros(2, 6).half()).any()


def test_seeds_make_vectors_reproducible():
    assert torch.equal(SMReg(8, 4, seed=3).features, SMReg(8, 4, seed=3).features)
    assert not torch.equal(SMReg(8, 4, seed=3).features, SMReg(8, 4, seed=4).features)
    # Only 32 bits reach torch's generator.
    assert not torch.equal(SMReg(8, 4, seed=3).features, SMReg(8, 4, seed=3 + 2**32).features)
    torch.manual_seed(0)
    first, second = SMReg(8, 4), SMReg(8, 4)
    assert not torch.equal(first.features, second.features)
    torch.manual_seed(0)
    assert torch.equal(SMReg(8, 4).features, first.features)


def drawings(phi, calls):
    """Return which of `calls` calls had other vectors than the one before."""
    before, changed = phi.projection(4), []
    for call in range(1, calls + 1):
        now = phi.projection_of_call(4)
        if not torch.equal(now, before):
            changed.append(call)
        before = now
    return changed


@each
def test_vectors_are_redrawn_after_so_many_calls(feature_map):
    assert drawings(feature_map(8, 4, iter_before_redraw=3, seed=0), 8) == [4, 7]
    assert drawings(feature_map(8, 4, iter_before_redraw=1, seed=0), 4) == [2, 3, 4]
    assert drawings(feature_map(8, 4, seed=0), 4) == []


def test_evaluation_neither_counts_nor_redraws():
    phi = SMReg(8, 4, iter_before_redraw=2, seed=0)
    phi.projection_of_call(4)
    phi.eval()
    assert drawings(phi, 5) == []
    phi.train()
    assert drawings(phi, 2) == [2]


def test_redrawn_vectors_are_orthogonal_and_of_their_lengths():
    phi = SMReg(16, 8, iter_before_redraw=1, seed=0)
    phi.projection_of_call(8)
    second = phi.projection_of_call(8).double()
    assert_close(second.T @ second, 8 * torch.eye(8, dtype=torch.float64), atol=1e-5, rtol=0)


def test_a_restored_map_goes_on_with_the_same_vectors():
    phi = SMReg(8, 4, iter_before_redraw=2, seed=0)
    drawings(phi, 3)
    restored = SMReg(8, 4, iter_before_redraw=2, seed=1)
    restored.load_state_dict(copy.deepcopy(phi.state_dict()))
    for _ in range(4):
        assert torch.equal(phi.projection_of_call(4), restored.projection_of_call(4))


def test_vectors_wait_for_the_first_call_where_the_width_is_unknown():
    phi = SMOrf(10, seed=0)
    assert phi.features.shape == (0, 10)
    assert phi(rows(3, 4).float()).shape == (3, 10)
    assert phi.features.shape == (4, 10)
    assert torch.equal(phi.features, SMOrf(10, 4, seed=0).features)
    restored = SMOrf(10)
    restored.load_state_dict(phi.state_dict())
    assert torch.equal(restored.features, phi.features)


def test_vectors_drawn_in_inference_mode_can_be_trained_with():
    phi = SMOrf(10, seed=0)
    with torch.inference_mode():
        phi(rows(3, 4).float())
    x = rows(3, 4).float().requires_grad_()
    phi(x).sum().backward()
    assert x.grad.any()


def test_a_map_without_memory_is_made_to_be_loaded():
    for dim_head in (4, None):
        with torch.device("meta"):
            phi = SMOrf(10, dim_head)
        saved = SMOrf(10, 4)
        phi.to_empty(device="cpu").load_state_dict(saved.state_dict())
        assert torch.equal(phi(rows(3, 4).float()), saved(rows(3, 4).float()))


def test_vectors_are_drawn_on_the_cpu_whatever_the_default():
    with torch.device("meta"):
        assert torch.equal(draw(6, 9), draw(6, 9))


def test_redrawing_is_a_well_formed_operator():
    vectors, seed = draw(4, 4).float(), torch.tensor(0)
    for calls in (0, 1, 2):
        arguments = (vectors.T, seed, torch.tensor(calls), 2, True)
        torch.library.opcheck(torch.ops.attn_modules.count_and_redraw.default, arguments)


def test_every_type_has_a_map():
    assert set(FEATURE_MAPS) == set(FeatureMapType)
    assert all(issubclass(feature_map, FeatureMap) for feature_map in FEATURE_MAPS.values())
    assert FeatureMapType("sm_reg") is FeatureMapType.SMReg


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim_features": 0}, "dim_features, an int of 1 or more, got 0"),
        ({"dim_features": 5}, "even number dim_features.*got 5"),
        ({"dim_features": 4, "dim_head": -1}, "dim_head, an int of 1 or more, got -1"),
        (
            {"dim_features": 4, "iter_before_redraw": 0},
            "iter_before_redraw, an int of 1 or more, got 0",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=f"SMReg: expected .*{message}"):
        SMReg(**options)


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match="SMReg: expected rows as wide as dim_head=4, got 5"):
        SMReg(8, 4)(torch.zeros(2, 5))
