"""The forward and backward functions: every argument reaches the C call."""

import threading
import time

import numpy as np
import pytest

from attn_ops import _native
from attn_ops._native import ANCHOR_BOTTOM_RIGHT

B, MQ, MKV, H, K, KV = 2, 5, 7, 3, 4, 6


def softmax_attention(query, key, value, bias, scale):
    """Return the definition's output and log-sum-exp in float64."""
    scores = scale * np.einsum("bihk,bjhk->bhij", query, key) + bias
    lse = np.log(np.exp(scores).sum(-1))
    weights = np.exp(scores - lse[..., None])
    return np.einsum("bhij,bjhv->bihv", weights, value), lse


@pytest.fixture
def inputs():
    generator = np.random.default_rng(7)
    return (
        generator.standard_normal((B, MQ, H, K)),
        generator.standard_normal((B, MKV, H, K)),
        generator.standard_normal((B, MKV, H, KV)),
        generator.standard_normal((B, 1, MQ, MKV)),
    )


def forward(query, key, value, **options):
    out, lse = np.empty((B, MQ, H, KV)), np.empty((B, H, MQ))
    _native.attention_forward(query, key, value, out, lse, **options)
    return out, lse


def band(left, right, shift):
    distance = np.arange(MKV) - np.arange(MQ)[:, None] - shift
    return np.where((-left <= distance) & (distance <= right), 0.0, -np.inf)


def test_forward_is_softmax_attention(inputs):
    query, key, value, bias = inputs
    out, lse = forward(query, key, value, bias=bias, scale=0.7)
    expected_out, expected_lse = softmax_attention(query, key, value, bias, 0.7)
    np.testing.assert_allclose(out, expected_out, rtol=1e-12)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-12)


def test_scale_defaults_to_inverse_root_of_width(inputs):
    query, key, value, _ = inputs
    for ours, plain in zip(
        forward(query, key, value), forward(query, key, value, scale=K**-0.5), strict=True
    ):
        np.testing.assert_array_equal(ours, plain)


def test_band_and_anchor_reach_the_kernel(inputs):
    query, key, value, _ = inputs
    out, _ = forward(query, key, value, band_left=1, band_right=2, band_anchor=ANCHOR_BOTTOM_RIGHT)
    expected, _ = softmax_attention(query, key, value, band(1, 2, MKV - MQ), K**-0.5)
    # Numbers near 0 are what is left of larger ones, of which a few ulps are lost.
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-15)


def test_keep_mask_excludes_keys(inputs):
    query, key, value, _ = inputs
    keep = np.arange(MKV) % 3 != 0
    out, _ = forward(query, key, value, bias=keep[None, None, None])
    expected, _ = softmax_attention(query, key, value, np.where(keep, 0.0, -np.inf), K**-0.5)
    np.testing.assert_allclose(out, expected, rtol=1e-12)


def test_dropout_depends_on_seed_and_offset_only(inputs):
    query, key, value, _ = inputs

    def dropped(seed, offset):
        return forward(query, key, value, dropout_p=0.5, dropout_seed=seed, dropout_offset=offset)[
            0
        ]

    np.testing.assert_array_equal(dropped(2**64 - 1, 3), dropped(2**64 - 1, 3))
    assert not np.array_equal(dropped(1, 3), dropped(2, 3))
    assert not np.array_equal(dropped(1, 3), dropped(1, 4))


def test_number_of_threads_changes_no_bit(inputs):
    query, key, value, _ = inputs
    alone = forward(query, key, value, num_threads=1)
    for ours, theirs in zip(forward(query, key, value, num_threads=3), alone, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_backward_matches_finite_differences(inputs):
    query, key, value, bias = inputs
    generator = np.random.default_rng(8)
    options = {"band_right": 3, "scale": 0.9, "dropout_p": 0.25, "dropout_seed": 5}
    out, lse = forward(query, key, value, bias=bias, **options)
    grad_out, grad_lse = generator.standard_normal(out.shape), generator.standard_normal(lse.shape)
    arrays = {"query": query, "key": key, "value": value, "bias": bias}
    gradients = {f"grad_{name}": np.empty_like(array) for name, array in arrays.items()}
    _native.attention_backward(
        query, key, value, out, lse, grad_out, grad_lse=grad_lse, bias=bias, **gradients, **options
    )

    def objective(**changed):
        moved_out, moved_lse = forward(**(arrays | changed), **options)
        return np.sum(moved_out * grad_out) + np.sum(moved_lse * grad_lse)

    step = 1e-6
    for name, array in arrays.items():
        direction = generator.standard_normal(array.shape)
        slope = (
            objective(**{name: array + step * direction})
            - objective(**{name: array - step * direction})
        ) / (2 * step)
        np.testing.assert_allclose(
            np.sum(gradients[f"grad_{name}"] * direction), slope, rtol=1e-6, err_msg=name
        )


def test_only_wanted_gradients_are_needed(inputs):
    query, key, value, _ = inputs
    out, lse = forward(query, key, value)
    grad_value = np.empty_like(value)
    _native.attention_backward(
        query, key, value, out, lse, np.ones_like(out), grad_value=grad_value
    )
    # Each value row is weighted by probabilities that sum to one over the keys.
    np.testing.assert_allclose(grad_value.sum(1), np.full((B, H, KV), float(MQ)), rtol=1e-12)


def test_other_threads_run_during_a_call():
    array = np.ones((1, 4096, 2, 64), np.float32)
    done = threading.Event()

    def work():
        _native.attention_forward(array, array, array, np.empty_like(array), num_threads=1)
        done.set()

    thread = threading.Thread(target=work)
    longest_pause, previous = 0.0, time.perf_counter()
    started = previous
    thread.start()
    while not done.is_set():
        time.sleep(0)
        now = time.perf_counter()
        longest_pause, previous = max(longest_pause, now - previous), now
    thread.join()
    assert longest_pause < 0.5 * (previous - started)


def test_a_dry_run_says_how_much_workspace_a_call_takes(inputs):
    query, key, value, _ = inputs
    out, lse = np.full((B, MQ, H, KV), 7.0), np.full((B, H, MQ), 7.0)
    needed = _native.attention_forward(query, key, value, out, lse, dry_run=True)
    assert needed > 0
    assert (out == 7).all()
    assert (lse == 7).all()
    workspace = np.zeros(needed, np.uint8)
    assert _native.attention_forward(query, key, value, out, lse, workspace=workspace) == needed
    assert workspace.any()
    np.testing.assert_array_equal(out, forward(query, key, value)[0])


@pytest.mark.parametrize(
    ("workspace", "message"),
    [
        (np.zeros(3, np.uint8), "workspace"),
        (np.zeros((2, 4096), np.uint8), "one axis"),
        (np.zeros(1 << 20, np.uint8)[::2], "one axis"),
    ],
)
def test_workspace_that_cannot_serve_is_refused(inputs, workspace, message):
    query, key, value, _ = inputs
    out = np.full((B, MQ, H, KV), 7.0)
    with pytest.raises(ValueError, match=message):
        _native.attention_forward(query, key, value, out, workspace=workspace)
    assert (out == 7).all()


def test_options_are_keywords_only(inputs):
    query, key, value, bias = inputs
    with pytest.raises(TypeError, match="attention_forward"):
        _native.attention_forward(
            query, key, value, np.empty((B, MQ, H, KV)), np.empty((B, H, MQ)), bias
        )
