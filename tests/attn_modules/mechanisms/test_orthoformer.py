"""Orthoformer against its paper's equation and literal choices of landmarks."""

import pytest
import torch
from torch.testing import assert_close

from attn_modules import LandmarkSelection, OrthoFormerAttention, ScaledDotProduct
from attn_modules._landmark_selection import Candidates, cluster, draw, pick_orthogonal, take
from reference.modules.orthoformer import (
    lloyd,
    orthoformer_attention,
    orthogonal_places,
    spherical_lloyd,
)

B, H, LENGTH, K, KV, LANDMARKS = 2, 3, 26, 6, 4, 5
EVERY_SELECTION = pytest.mark.parametrize("selection", list(LandmarkSelection))


def qkv(queries=LENGTH, keys=LENGTH):
    generator = torch.Generator().manual_seed(0)
    shapes = (queries, K), (keys, K), (keys, KV)
    return [
        torch.randn(B, H, *shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def made(selection="orthogonal", count=LANDMARKS, **options):
    torch.manual_seed(0)
    return OrthoFormerAttention(0.0, count, landmark_selection=selection, **options)


def drawn_keep(length=LENGTH):
    keep = torch.rand(B, H, length, generator=torch.Generator().manual_seed(1)) < 0.7
    keep[0, 0] = torch.arange(length) < 3  # fewer than landmarks
    return keep


def expected_landmarks(attention, rows):
    """Choose literally among rows [n, K]."""
    count, seed = min(attention.num_landmarks, len(rows)), attention.seed
    drawn = draw(Candidates(rows[None, None], None), count, seed)[0, 0].tolist()
    match attention.landmark_selection:
        case LandmarkSelection.Orthogonal:
            return rows[orthogonal_places(rows, drawn[0], count)]
        case LandmarkSelection.KMeans:
            return lloyd(rows, rows[drawn], 6, lambda x, c: -(x - c).square().sum())
        case LandmarkSelection.KMeans_Spherical:
            return spherical_lloyd(rows, rows[drawn], 6)
        case LandmarkSelection.Random:
            return rows[drawn]


def reference(attention, inputs, keep=None, *, keys_too=False):
    """Return [B, H, Mq, Kv]; keep [B, H, M] is of queries too where there are as many."""
    out = []
    for b in range(B):
        for h in range(H):
            q, k, v = (x[b, h] for x in inputs)
            kept = slice(None) if keep is None else keep[b, h]
            rows = q[kept] if len(q) == len(k) else q
            rows = torch.cat((rows, k[kept])) if keys_too else rows
            landmarks = expected_landmarks(attention, rows.detach())
            out.append(orthoformer_attention(q, k[kept], v[kept], landmarks))
    return torch.stack(out).unflatten(0, (B, H))


def assert_alike(ours, expected, *inputs):
    assert_close(ours, expected)
    weight = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64).reshape(ours.shape)
    gradients = (torch.autograd.grad(out, inputs, weight) for out in (ours, expected))
    for mine, theirs in zip(*gradients, strict=True):
        assert_close(mine, theirs)


@EVERY_SELECTION
@pytest.mark.parametrize(("queries", "keys"), [(LENGTH, LENGTH), (9, 20), (20, 9)])
@pytest.mark.parametrize("keys_too", [False, True], ids=["queries", "both"])
def test_output_and_gradients(selection, queries, keys, keys_too):
    source = "queries_and_keys" if keys_too else "queries"
    attention, inputs = made(selection, landmarks_from=source), qkv(queries, keys)
    ours = attention(*inputs)
    assert_alike(ours, reference(attention, inputs, keys_too=keys_too), *inputs)
    assert_close(attention(*(x.flatten(0, 1) for x in inputs)), ours.flatten(0, 1))


@EVERY_SELECTION
@pytest.mark.parametrize("queries", [LENGTH, 20])
@pytest.mark.parametrize("keys_too", [False, True], ids=["queries", "both"])
def test_padding_is_as_if_it_were_not_there(selection, queries, keys_too):
    source = "queries_and_keys" if keys_too else "queries"
    attention, inputs = made(selection, landmarks_from=source), qkv(queries)
    keep = drawn_keep()
    ours = attention(*inputs, key_padding_mask=keep.flatten(0, 1))
    assert_alike(ours, reference(attention, inputs, keep, keys_too=keys_too), *inputs)
    dirty = [x.detach().masked_fill(~keep[..., None], torch.nan) for x in inputs[1:]]
    assert torch.equal(attention(inputs[0], *dirty, key_padding_mask=keep.flatten(0, 1)), ours)


@EVERY_SELECTION
def test_no_more_rows_than_landmarks_is_exact(selection):
    for queries, keys in ((8, 8), (8, 20), (20, 8)):
        inputs = qkv(queries, keys)
        mask = torch.rand(queries, keys, generator=torch.Generator().manual_seed(1)) < 0.8
        expected = ScaledDotProduct()(*inputs, mask)
        assert torch.equal(made(selection, 8)(*inputs, mask), expected)


@EVERY_SELECTION
def test_a_part_of_the_rows_is_enough(selection):
    attention, inputs = made(selection, subsample_fraction=0.5), qkv()
    rows = inputs[0].detach()
    part = draw(Candidates(rows, None), LENGTH // 2, attention.seed + 1)[0, 0]
    expected = reference_from(attention, inputs, rows[:, :, part])
    assert_close(attention(*inputs), expected)
    attention.subsample_fraction = 0.01
    assert attention(*inputs).isfinite().all()


def reference_from(attention, inputs, rows):
    out = [
        orthoformer_attention(*(x[b, h] for x in inputs), expected_landmarks(attention, rows[b, h]))
        for b in range(B)
        for h in range(H)
    ]
    return torch.stack(out).unflatten(0, (B, H))


@EVERY_SELECTION
def test_the_seed_decides(selection):
    inputs = qkv()
    first, same, other = (
        OrthoFormerAttention(0.0, 5, 1.0, selection, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    state = torch.get_rng_state()
    assert torch.equal(first(*inputs), same(*inputs))
    assert not torch.equal(first(*inputs), other(*inputs))
    other.load_state_dict(first.state_dict())
    assert torch.equal(first(*inputs), other(*inputs))
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_are_of_any_place_alike():
    counts = torch.zeros(20)
    rows = Candidates(torch.zeros(1, 1, 20, 1), None)
    for seed in range(2000):
        places = draw(rows, 5, torch.tensor(seed * 7919))[0, 0]
        assert len(set(places.tolist())) == 5
        counts[places] += 1
    assert (counts / 500 - 1).abs().max() < 0.2


def test_clusters_without_rows_keep_their_centre():
    rows = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])[None, None]
    for by_angle in (False, True):
        first = torch.tensor([0, 1, 3])[None, None]
        means, _ = cluster(Candidates(rows, None), first, by_angle=by_angle)
        assert torch.equal(means[0, 0], rows[0, 0, [0, 1, 3]])


def test_padding_is_picked_last_of_all():
    rows = torch.full((1, 1, 6, 2), torch.nan)
    keep = torch.tensor([False, True, False, True, True, False])[None, None]
    rows[:, :, [1, 3, 4]] = torch.eye(3)[:, :2] + 0.1
    places = pick_orthogonal(Candidates(rows, keep), 5, torch.tensor(3))
    assert set(places[0, 0, :3].tolist()) == {1, 3, 4}
    assert take(Candidates(rows, keep), places).keep[0, 0].tolist() == [True] * 3 + [False] * 2


def test_what_cannot_be_honoured_is_refused():
    with pytest.raises(NotImplementedError, match=r"up to num_landmarks=\d+ queries or keys"):
        made()(*qkv(), att_mask=torch.ones(LENGTH, LENGTH, dtype=torch.bool))
    with pytest.raises(
        ValueError, match="one of orthogonal, kmeans, kmeans_spherical, random, got 'nearest'"
    ):
        made("nearest")
    with pytest.raises(ValueError, match="landmarks_from 'queries' or 'queries_and_keys'"):
        made(landmarks_from="values")
    with pytest.raises(ValueError, match="num_landmarks, an int of 1 or more, got 0"):
        made(count=0)
    for fraction in (0.0, 1.1):
        with pytest.raises(ValueError, match=rf"subsample_fraction in \(0, 1\], got {fraction}"):
            made(subsample_fraction=fraction)
