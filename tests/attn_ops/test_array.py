"""`attn_ops.array` on NumPy arrays. Runs without torch: tests/packaging runs it once more so."""

import ml_dtypes
import numpy as np
import pytest

from attn_ops import array
from attn_ops.mask import ANCHOR_BOTTOM_RIGHT, Band

B, MQ, MKV, HQ, HKV, K, KV = 2, 9, 13, 6, 2, 5, 7


@pytest.fixture
def inputs():
    generator = np.random.default_rng(3)
    return (
        generator.standard_normal((B, MQ, HQ, K)),
        generator.standard_normal((B, MKV, HKV, K)),
        generator.standard_normal((B, MKV, HKV, KV)),
    )


def softmax_attention(query, key, value, bias=0.0, scale=None):
    """Return the definition's output in float64, key and value heads repeated."""
    key, value = (np.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    weights = np.exp(scale * np.einsum("bihk,bjhk->bhij", query, key) + bias)
    return np.einsum("bhij,bjhv->bihv", weights / weights.sum(-1, keepdims=True), value)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(np.float64, 1e-12), (np.float32, 1e-5), (np.float16, 5e-3), (ml_dtypes.bfloat16, 4e-2)],
)
def test_attention_is_softmax_attention_in_the_inputs_dtype(inputs, dtype, tolerance):
    rounded = [x.astype(dtype) for x in inputs]
    out = array.attention(*rounded)
    assert out.dtype == dtype
    expected = softmax_attention(*[x.astype(np.float64) for x in rounded])
    np.testing.assert_allclose(out.astype(np.float64), expected, atol=tolerance)


def test_causal_band_sees_no_later_key(inputs):
    query, key, value = inputs
    later = np.where(np.arange(MKV) > np.arange(MQ)[:, None], -np.inf, 0.0)
    out = array.attention(query, key, value, band=array.CAUSAL)
    np.testing.assert_allclose(out, softmax_attention(query, key, value, later), rtol=1e-12)


def test_band_from_the_last_key_shows_the_last_query_all(inputs):
    query, key, value = inputs
    band = Band(right=0, anchor=array.ANCHOR_BOTTOM_RIGHT)
    out = array.attention(query, key, value, band=band)
    last = array.attention(query[:, -1:], key, value)
    np.testing.assert_allclose(out[:, -1:], last, rtol=1e-12)


def test_query_without_keys_gives_zero_and_minus_infinity(inputs):
    query, key, value = inputs
    band = Band(right=-MKV, anchor=ANCHOR_BOTTOM_RIGHT)
    out, lse = array.attention(query, key, value, band=band, return_lse=True)
    assert np.all(out == 0)
    assert np.all(lse == -np.inf)


@pytest.mark.parametrize("shape", [(B, HQ, MQ, MKV), (1, HQ, 1, MKV), (B, 1, MQ, 1)])
def test_bias_broadcasts(inputs, shape):
    bias = np.random.default_rng(4).standard_normal(shape)
    np.testing.assert_allclose(
        array.attention(*inputs, bias=bias), softmax_attention(*inputs, bias), rtol=1e-12
    )


def test_out_is_written_and_returned(inputs):
    large = np.full((B, MQ, HQ, KV + 2), 7.0)
    result = array.attention(*inputs, out=large[..., 1:-1])
    assert result.base is large
    np.testing.assert_array_equal(large[..., 1:-1], array.attention(*inputs))
    assert np.all(large[..., [0, -1]] == 7.0)


def test_lse_has_a_row_per_query(inputs):
    single = [x.astype(np.float32) for x in inputs]
    out, lse = array.attention(*single, return_lse=True)
    assert lse.shape == (B, HQ, MQ)
    assert lse.dtype == np.float32
    np.testing.assert_array_equal(out, array.attention(*single))


def test_other_frameworks_come_through_dlpack(inputs):
    class Foreign:
        """Offers what the array API asks for, and nothing of NumPy."""

        def __init__(self, inner):
            self.inner, self.shape, self.dtype = inner, inner.shape, f"framework.{inner.dtype}"

        def __dlpack__(self, **options):
            return self.inner.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.inner.__dlpack_device__()

    out = array.attention(*[Foreign(x) for x in inputs])
    np.testing.assert_array_equal(out, array.attention(*inputs))


def test_what_no_memory_holds_is_refused_by_name(inputs):
    class Nowhere:
        shape, dtype = inputs[1].shape, inputs[1].dtype

        def __dlpack__(self, **_options):
            raise AssertionError

        def __dlpack_device__(self):
            raise ValueError("Unknown device type meta for Dlpack")

    with pytest.raises(NotImplementedError, match=r"expected key in CPU memory, got .* meta"):
        array.attention(inputs[0], Nowhere(), inputs[2])


def test_backward_matches_finite_differences(inputs):
    generator = np.random.default_rng(5)
    bias = generator.standard_normal((1, HQ, MQ, MKV))
    arrays = dict(zip(("query", "key", "value", "bias"), (*inputs, bias), strict=True))
    options = {"band": Band(left=4), "dropout_p": 0.3, "dropout_seed": 9, "scale": 0.8}
    out, lse = array.attention(**arrays, **options, return_lse=True)
    grad_out, grad_lse = generator.standard_normal(out.shape), generator.standard_normal(lse.shape)
    gradients = array.attention_backward(
        **arrays,
        out=out,
        lse=lse,
        grad_out=grad_out,
        grad_lse=grad_lse,
        bias_gradient=True,
        **options,
    )

    def objective(**changed):
        moved_out, moved_lse = array.attention(**(arrays | changed), **options, return_lse=True)
        return np.sum(moved_out * grad_out) + np.sum(moved_lse * grad_lse)

    step = 1e-6
    for name, values in arrays.items():
        direction = generator.standard_normal(values.shape)
        ahead = objective(**{name: values + step * direction})
        behind = objective(**{name: values - step * direction})
        gradient = getattr(gradients, name)
        assert gradient.shape == values.shape
        np.testing.assert_allclose(
            np.sum(gradient * direction), (ahead - behind) / (2 * step), rtol=1e-6, err_msg=name
        )


def test_bias_gradient_only_on_request(inputs):
    bias = np.zeros((1, 1, 1, MKV))
    out, lse = array.attention(*inputs, bias=bias, return_lse=True)
    gradients = array.attention_backward(*inputs, out, lse, np.ones_like(out), bias=bias)
    assert gradients.bias is None
    with pytest.raises(ValueError, match="bias_gradient=True needs a bias, got None"):
        array.attention_backward(*inputs, out, lse, np.ones_like(out), bias_gradient=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": np.zeros((3, 4))}, r"query must have the axes .*got shape \(3, 4\)"),
        ({"key": np.zeros((B, MKV, HKV, K + 1))}, "key"),
        ({"value": np.zeros((B, MKV + 1, HKV, KV))}, "value"),
        ({"key": np.zeros((B, MKV, HKV, K), np.float32)}, "key"),
        ({"bias": np.zeros((B, HQ, MQ, MKV + 1))}, "bias"),
        ({"out": np.zeros((B, MQ, HQ, KV + 1))}, "out"),
        ({"dropout_p": 1.5}, r"dropout.*1\.5"),
        ({"scale": float("nan")}, "scale"),
        ({"num_threads": -1}, "num_threads"),
        ({"band": Band(anchor=2)}, "anchor"),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else None,
)
def test_misfit_is_refused_by_name(inputs, change, message):
    arguments = dict(zip(("query", "key", "value"), inputs, strict=True)) | change
    with pytest.raises(ValueError, match=message):
        array.attention(**arguments)


@pytest.mark.parametrize("stranger", [[[1.0]], 2.0, "text"])
def test_list_is_refused_rather_than_converted(inputs, stranger):
    query, _, value = inputs
    with pytest.raises(TypeError, match=r"attention: key must be an array.*got"):
        array.attention(query, stranger, value)


WRONG = {
    "shape": ({"key": np.zeros((B, MKV, HKV, K + 1))}, "expected key's extent K"),
    "dtype": ({"query": np.zeros((B, MQ, HQ, K), int)}, "query must be float32, bfloat16"),
    "bias dtype": ({"bias": np.zeros((1, 1, MQ, MKV), int)}, "got int64"),
    "dropout_p": ({"dropout_p": 2.0}, "expected dropout_p to be in [0, 1], got 2"),
    "num_threads": ({"num_threads": -1}, "expected num_threads >= 0, got -1"),
    "scale": ({"scale": np.inf}, "scale must be finite"),
    "scale in words": ({"scale": "1"}, "expected a number or None as scale, got '1' of"),
    "scale as a flag": ({"scale": True}, "expected a number or None as scale, got True"),
    "dropout_p in words": ({"dropout_p": "a"}, "expected a number as dropout_p, got 'a'"),
    "negative seed": ({"dropout_seed": -1}, "expected dropout_seed of 0 or more"),
    "great seed": ({"dropout_seed": 2**64}, "and below 18446744073709551616, got"),
    "fractional offset": ({"dropout_offset": 1.5}, "an integer as dropout_offset, got 1.5"),
    "fractional threads": ({"num_threads": 1.5}, "expected an integer as num_threads, got 1.5"),
    "fractional band": ({"band": Band(left=2.5)}, "expected an integer as band.left, got 2.5"),
    "anchor in words": ({"band": Band(anchor="bottom")}, "such as array.ANCHOR_BOTTOM_RIGHT, got"),
    "band": ({"band": 3}, "band must be a Band, such as CAUSAL, got 3"),
    "bias": ({"bias": "a"}, "bias must be an array"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_argument_is_named_in_the_words_of_this_function(inputs, case):
    options, message = WRONG[case]
    arguments = dict(zip(("query", "key", "value"), inputs, strict=True))
    with pytest.raises((TypeError, ValueError)) as raised:
        array.attention(**{**arguments, **options})
    assert str(raised.value).startswith("attention: ")
    assert message in str(raised.value)
    assert "attn_" not in str(raised.value)


def test_public_names_are_listed():
    assert set(array.__all__) <= set(dir(array))
    assert "np" not in array.__all__


def attend_in_chunks(query, key, value, *, lengths):
    ends = np.cumsum(lengths)[:-1]
    pairs = zip(np.split(key, ends, axis=1), np.split(value, ends, axis=1), strict=True)
    results = [array.attention(query, *pair, return_lse=True) for pair in pairs]
    return [out for out, _ in results], [lse for _, lse in results]


def test_chunks_merged_are_the_whole(inputs):
    outs, lses = attend_in_chunks(*inputs, lengths=[4, 1, 0, 8])
    whole = array.attention(*inputs, return_lse=True)
    for merged in (
        array.merge_attentions(outs, lses),
        array.merge_attentions(np.stack(outs), np.stack(lses)),
    ):
        for ours, theirs in zip(merged, whole, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_merge_writes_into_out_of_another_dtype(inputs):
    outs, lses = attend_in_chunks(*[x.astype(np.float16) for x in inputs], lengths=[6, 7])
    out = np.empty(outs[0].shape, np.float32)
    merged, lse = array.merge_attentions(outs, lses, out=out)
    assert merged is out
    assert lse.dtype == np.float32
    np.testing.assert_allclose(out, softmax_attention(*inputs), atol=1e-2)


def test_gradients_of_merge_are_those_of_its_definition(inputs):
    outs, lses = attend_in_chunks(*inputs, lengths=[6, 7])
    generator = np.random.default_rng(8)
    grad_out, grad_lse = (generator.standard_normal(x[0].shape) for x in (outs, lses))
    grad_outs, grad_lses = array.merge_attentions_backward(outs, lses, grad_out, grad_lse=grad_lse)
    out, lse = array.merge_attentions(outs, lses)
    for chunk in range(2):
        weight = np.exp(lses[chunk] - lse)
        np.testing.assert_allclose(
            grad_outs[chunk], np.moveaxis(weight, 1, 2)[..., None] * grad_out, rtol=1e-10
        )
        shift = np.moveaxis((grad_out * (outs[chunk] - out)).sum(-1), 1, 2)
        np.testing.assert_allclose(
            grad_lses[chunk], weight * (shift + grad_lse), rtol=1e-9, atol=1e-12
        )


def test_merge_refuses_by_name(inputs):
    outs, lses = attend_in_chunks(*inputs, lengths=[6, 7])
    for chunks in ((iter(outs), lses), (outs, iter(lses))):
        with pytest.raises(TypeError, match=r"as a sequence of arrays, got .*; pass list\(chunk_"):
            array.merge_attentions(*chunks)
    with pytest.raises(ValueError, match="chunk_outs must hold at least one chunk"):
        array.merge_attentions([], [])
    with pytest.raises(ValueError, match="merge_attentions: expected as many arrays in chunk_lses"):
        array.merge_attentions(outs, lses[:1])
    with pytest.raises(ValueError, match=r"chunk_outs\[1\] must have the axes"):
        array.merge_attentions([outs[0], outs[1][0]], lses)
    with pytest.raises(ValueError, match="merge_attentions: in chunk 1, expected chunk_lse's"):
        array.merge_attentions(outs, [lses[0], lses[1][:, :2]])
    with pytest.raises(TypeError, match="chunk_lses must be an array"):
        array.merge_attentions(outs, [lses[0], "lse"])
