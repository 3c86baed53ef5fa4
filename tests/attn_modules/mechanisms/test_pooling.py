"""Pooling against means of windows, one at a time."""

import pytest
import torch
from torch.testing import assert_close

from attn_modules import Pooling
from reference.modules.mixing import pool

WINDOWS = [
    (size, stride, padding)
    for size in (1, 2, 3, 4, 5)
    for stride in (1, 2, 3)
    for padding in range(size // 2 + 1)
]


def drawn(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("size", "stride", "padding"), WINDOWS)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
def test_output_and_gradients(size, stride, padding, masked):
    x = drawn(2, 36, 3)
    keep = torch.rand(2, 36, generator=torch.Generator().manual_seed(1)) < 0.6
    images = x.unflatten(1, (6, 6))
    masks = keep.unflatten(1, (6, 6)) if masked else (None, None)
    expected = torch.stack(
        [
            pool(image, size, stride, padding, mask)
            for image, mask in zip(images, masks, strict=True)
        ]
    )
    options = {"key_padding_mask": keep} if masked else {}
    out = Pooling(size, stride, padding)(x, x, x, **options)
    assert_close(out, expected)
    weight = drawn(*out.shape).detach()
    ours, theirs = (torch.autograd.grad(y, x, weight)[0] for y in (out, expected))
    assert_close(ours, theirs)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
def test_there_are_as_many_results_as_pixels_by_default(size):
    x = drawn(2, 49, 3)
    assert Pooling(size)(x, x, x).shape == x.shape


@pytest.mark.parametrize(("size", "padding", "pixels"), [(3, 0, 4), (4, 1, 1), (2, 1, 0)])
def test_windows_that_exceed_the_image_leave_nothing(size, padding, pixels):
    x = drawn(2, pixels, 3)
    out = Pooling(size, padding=padding)(x, x, x, key_padding_mask=torch.ones(2, pixels).bool())
    assert out.shape == (2, 0, 3)
    out.sum().backward()
    assert not x.grad.any()


def test_padding_at_the_border_is_like_a_smaller_image():
    small = drawn(1, 25, 3)
    large = torch.full((1, 6, 6, 3), torch.nan, dtype=torch.float64)
    large[:, :5, :5] = small.unflatten(1, (5, 5))
    keep = large.flatten(1, 2).isfinite().all(-1)
    large = large.flatten(1, 2)
    out = Pooling(4)(large, large, large, key_padding_mask=keep)
    assert_close(out[keep], Pooling(4)(small, small, small)[0])


def test_heads_have_their_own_padding():
    x = drawn(2, 3, 16, 5)
    keep = torch.rand(6, 16, generator=torch.Generator().manual_seed(1)) < 0.6
    out = Pooling()(x, x, x, key_padding_mask=keep)
    folded = x.flatten(0, 1)
    assert_close(out.flatten(0, 1), Pooling()(folded, folded, folded, key_padding_mask=keep))
    for head in range(6):
        alone = Pooling()(*[folded[head : head + 1]] * 3, key_padding_mask=keep[head : head + 1])
        assert_close(out.flatten(0, 1)[head], alone[0])


def test_what_does_not_fit_is_refused():
    x = drawn(1, 12, 3)
    with pytest.raises(
        ValueError, match=r"expected a square number of queries.* got 12; pad to 16"
    ):
        Pooling()(x, x, x)
    for options in ({"pool_size": 0}, {"stride": 0}, {"padding": -1}, {"padding": 2}):
        with pytest.raises(ValueError, match=f"Pooling: expected {next(iter(options))}"):
            Pooling(**options)
