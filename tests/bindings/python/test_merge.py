"""merge_forward and merge_backward of the extension module: arrays of any kind, and refusals."""

import ml_dtypes
import numpy as np
import pytest

from attn_ops import _native

CHUNKS, B, M, H, KV = 3, 2, 4, 3, 5


def make_chunks(dtype=np.float32):
    generator = np.random.default_rng(2)
    outs = [generator.standard_normal((B, M, H, KV)).astype(dtype) for _ in range(CHUNKS)]
    lses = [generator.standard_normal((B, H, M)).astype(np.float32) for _ in range(CHUNKS)]
    return outs, lses


def expected_out(outs, lses):
    weights = np.exp(lses - np.log(np.exp(lses).sum(0)))
    return (weights.swapaxes(2, 3)[..., None] * np.stack(outs)).sum(0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_lists_tuples_and_stacks_are_borrowed(dtype):
    outs, lses = make_chunks(dtype)
    merged = [np.full((B, M, H, KV), np.nan, np.float32) for _ in range(3)]
    _native.merge_forward(outs, lses, merged[0])
    _native.merge_forward(tuple(outs), np.stack(lses), merged[1], num_threads=3)
    _native.merge_forward(np.stack(outs), lses, merged[2], np.empty((B, H, M), np.float32))
    wide = [out.astype(np.float32) for out in outs]
    np.testing.assert_allclose(merged[0], expected_out(wide, np.stack(lses)), atol=1e-5)
    assert np.array_equal(merged[0], merged[1])
    assert np.array_equal(merged[0], merged[2])


def test_only_the_wanted_gradients_are_written():
    outs, lses = make_chunks()
    grad_out = np.ones((B, M, H, KV), np.float32)
    grad_outs = [np.full_like(out, np.nan) for out in outs]
    _native.merge_backward(outs, lses, grad_out, grad_chunk_outs=[grad_outs[0], None, grad_outs[2]])
    assert np.isfinite(grad_outs[0]).all()
    assert np.isnan(grad_outs[1]).all()
    assert np.isfinite(grad_outs[2]).all()


def test_refusals():
    outs, lses = make_chunks()
    out = np.empty((B, M, H, KV), np.float32)
    with pytest.raises(ValueError, match="as many arrays in chunk_lses as in chunk_outs"):
        _native.merge_forward(outs, lses[:2], out)
    with pytest.raises(ValueError, match="chunk_lses as in chunk_outs, got 0 and 3"):
        _native.merge_forward(outs, [], out)
    with pytest.raises(ValueError, match="as many arrays in grad_chunk_lses"):
        _native.merge_backward(outs, lses, out, grad_chunk_lses=lses[:1])
    with pytest.raises(ValueError, match="num_chunks in"):
        _native.merge_forward([], [], out)
    with pytest.raises(ValueError, match="in chunk 1, expected chunk_out's extent"):
        _native.merge_forward([outs[0], outs[1][:, :2], outs[2]], lses, out)
    with pytest.raises(TypeError, match="not iterable"):
        _native.merge_forward(3, lses, out)
    out.flags.writeable = False
    with pytest.raises(TypeError, match="out must be a writable array"):
        _native.merge_forward(outs, lses, out)
