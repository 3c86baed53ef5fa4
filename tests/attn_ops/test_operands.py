"""What kernels read: rows of stride 1, and LSEs in the dtype that they compute in."""

import pytest
import torch

from attn_ops.operands import with_unit_stride, working_dtype


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_working_dtype_is_float32_but_for_float64(dtype, expected):
    assert working_dtype(dtype) == expected


def test_rows_are_copied_only_where_their_stride_is_another():
    x = torch.randn(3, 5, 4)
    for readable in (x, x.transpose(0, 1), x[:, :, :1], x[:, :, ::4]):
        assert with_unit_stride(readable) is readable
    for other in (x.mT, x[..., ::2], torch.ones(()).expand(3, 4)):
        copy = with_unit_stride(other)
        assert copy.stride(-1) == 1
        assert torch.equal(copy, other)
