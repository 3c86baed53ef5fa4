"""Which arrays the extension module borrows, and how it refuses the others."""

import ctypes

import ml_dtypes
import numpy as np
import pytest

from attn_ops import _native

torch = pytest.importorskip("torch")

SHAPE = (2, 3, 4, 8)


def filled(dtype=np.float32, shape=SHAPE):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def forward(array, out=None):
    """Attention of `array` over itself, written to `out`."""
    out = np.empty_like(array) if out is None else out
    _native.attention_forward(array, array, array, out)
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_dtypes_of_numpy(dtype):
    exact = forward(filled(np.float64).astype(dtype).astype(np.float64))
    np.testing.assert_allclose(forward(filled(dtype)).astype(np.float64), exact, atol=0.02)


def test_torch_and_numpy_give_the_same_bits():
    for name in ("float32", "float16", "float64"):
        array = filled(name)
        out = torch.empty(SHAPE, dtype=getattr(torch, name))
        _native.attention_forward(*[torch.from_numpy(array)] * 3, out)
        np.testing.assert_array_equal(out.numpy(), forward(array))


def test_torch_bfloat16_matches_ml_dtypes():
    array = filled(ml_dtypes.bfloat16)
    tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    out = torch.empty_like(tensor)
    _native.attention_forward(tensor, tensor, tensor, out)
    np.testing.assert_array_equal(out.view(torch.int16).numpy(), forward(array).view(np.int16))


def test_tensor_that_requires_grad_is_read():
    tensor = torch.from_numpy(filled()).requires_grad_()
    out = forward(tensor, np.empty(SHAPE, np.float32))
    np.testing.assert_array_equal(out, forward(filled()))


def test_buffer_without_dlpack_is_read_and_written():
    array, out = filled(), np.empty(SHAPE, np.float32)
    _native.attention_forward(*[memoryview(array)] * 3, memoryview(out))
    np.testing.assert_array_equal(out, forward(array))


def test_read_only_input_is_read():
    array = filled()
    array.flags.writeable = False
    np.testing.assert_array_equal(forward(array), forward(filled()))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_any_outer_strides_are_borrowed(dtype):
    large = filled(dtype, (4, 6, 8, 16))
    views = [large[::2, 1:4, ::-2, :8], large[1:3, 4:1:-1, :4, 8:], large[:2, ::2, 4:, 3:11]]
    out = np.zeros((2, 4, 3, 8), dtype).swapaxes(1, 2)
    expected = np.empty(SHAPE, dtype)
    _native.attention_forward(*views, out)
    _native.attention_forward(*[np.ascontiguousarray(view) for view in views], expected)
    np.testing.assert_array_equal(out, expected)


def test_shared_head_is_not_expanded():
    array = filled()
    shared = np.broadcast_to(array[:, :, :1], SHAPE)
    out = np.empty(SHAPE, np.float32)
    _native.attention_forward(array, shared, shared, out)
    expected = np.empty(SHAPE, np.float32)
    _native.attention_forward(array, array[:, :, :1], array[:, :, :1], expected)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_inner_stride_is_refused_rather_than_copied():
    wide = filled(shape=(2, 3, 4, 16))
    with pytest.raises(ValueError, match=r"query.*stride"):
        forward(wide[..., ::2])


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_read_only_out_is_refused(dtype):
    out = np.empty(SHAPE, dtype)
    out.flags.writeable = False
    with pytest.raises(TypeError, match=r"attention_forward: out must be a writable array"):
        forward(filled(dtype), out)


@pytest.mark.parametrize(
    "stranger",
    [
        [[1.0]],
        "text",
        3.5,
        filled(">f4"),
        filled().astype(object),
        torch.zeros(SHAPE, device="meta"),
        torch.zeros(2, 2).to_sparse(),
    ],
    ids=["list", "str", "float", "big-endian", "object", "meta", "sparse"],
)
def test_what_is_no_array_is_refused_by_name(stranger):
    array = filled()
    with pytest.raises(TypeError, match=r"attention_forward: key must be an array.*got"):
        _native.attention_forward(array, stranger, array, np.empty_like(array))


CUDA, CUDA_HOST = 2, 3  # DLPack's numbers of device types


class On:
    """An array that says that it lies on another device."""

    def __init__(self, device_type, array, device_id=0):
        self.device_type = device_type
        self.device_id = device_id
        self.array = array

    def __dlpack__(self, **_options):
        capsule = self.array.__dlpack__()
        get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
        get_pointer.restype, get_pointer.argtypes = (
            ctypes.c_void_p,
            (ctypes.py_object, ctypes.c_char_p),
        )
        kind = ctypes.c_int32.from_address(get_pointer(capsule, b"dltensor") + 8)
        kind.value = self.device_type
        ctypes.c_int32.from_address(ctypes.addressof(kind) + 4).value = self.device_id
        return capsule

    def __dlpack_device__(self):
        return (self.device_type, self.device_id)


@pytest.mark.skipif(_native.has_cuda(), reason="its memory is not a GPU's")
def test_cuda_arrays_reach_the_library():
    array, out, lse = (On(CUDA, filled(shape=shape)) for shape in (SHAPE, SHAPE, (2, 4, 3)))
    without_cuda = "no CUDA in this build"
    with pytest.raises(NotImplementedError, match=without_cuda):
        _native.attention_forward(array, array, array, out, stream=2)
    with pytest.raises(NotImplementedError, match=without_cuda):
        _native.attention_backward(array, array, array, out, lse, array, dry_run=True)
    with pytest.raises(NotImplementedError, match=without_cuda):
        _native.merge_forward([array], [lse], out)
    with pytest.raises(NotImplementedError, match=without_cuda):
        _native.merge_backward([array], [lse], out, stream=0)


def test_pinned_memory_is_the_cpus():
    array, out = filled(), np.empty(SHAPE, np.float32)
    pinned = On(CUDA_HOST, array, device_id=1)
    _native.attention_forward(pinned, array, pinned, On(CUDA_HOST, out))
    np.testing.assert_array_equal(out, forward(array))


def test_missing_array_is_refused_by_name():
    array = filled()
    with pytest.raises(ValueError, match="value"):
        _native.attention_forward(array, array, None, np.empty_like(array))


@pytest.mark.parametrize("dtype", [np.complex64, np.int32, np.bool_])
def test_foreign_dtype_is_refused_and_nothing_written(dtype):
    out = filled()
    with pytest.raises(ValueError, match=r"query.*float32"):
        _native.attention_forward(*[np.ones(SHAPE, dtype)] * 3, out)
    np.testing.assert_array_equal(out, filled())
