"""Fourier mixing against the double sum."""

import pytest
import torch
from torch.testing import assert_close

from attn_modules import FourierMix
from reference.modules.mixing import fourier


def drawn(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize(("rows", "width"), [(6, 8), (7, 5), (1, 3), (4, 1)])
def test_output_and_gradients(rows, width):
    x = drawn(2, 3, rows, width).requires_grad_()
    weight = drawn(2, 3, rows, width).flip(-1)
    expected = torch.stack([torch.stack([fourier(head) for head in element]) for element in x])
    out = FourierMix()(x, x, x)
    assert_close(out, expected)
    ours, theirs = (torch.autograd.grad(y, x, weight)[0] for y in (out, expected))
    assert_close(ours, theirs)
    assert_close(FourierMix()(*[x.flatten(0, 1)] * 3), expected.flatten(0, 1))


def test_gradients_of_gradients():
    x = drawn(1, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: FourierMix()(x, x, x) ** 2, x)


def test_padding_enters_as_zeros():
    x = drawn(2, 1, 6, 4)
    keep = torch.tensor([[1, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1]]).bool()
    expected = FourierMix()(*[x * keep[:, None, :, None]] * 3)
    x = x.masked_fill(~keep[:, None, :, None], torch.nan).requires_grad_()
    out = FourierMix()(x, x, x, key_padding_mask=keep)
    assert_close(out, expected)
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert gradient.isfinite().all()
    assert not gradient[0, 0, ~keep[0]].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_dtypes(dtype):
    x = drawn(2, 2, 12, 6).to(dtype)
    out = FourierMix()(x, x, x)
    assert torch.equal(out, FourierMix()(*[x.float()] * 3).to(dtype))


def test_other_lengths_are_refused():
    x = drawn(1, 1, 6, 4)
    with pytest.raises(ValueError, match="as many keys as queries"):
        FourierMix()(x, x[:, :, :3], x[:, :, :3])
