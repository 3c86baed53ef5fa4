"""Large-kernel attention against its convolutions, one pixel at a time."""

import pytest
import torch
from torch.testing import assert_close

from attn_modules import Visual
from reference.modules.mixing import visual


def drawn(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return Visual(4).double()


def test_output_and_gradients(attention):
    x = drawn(2, 49, 4)
    state = attention.state_dict(keep_vars=True)
    expected = torch.stack([visual(image, state).flatten(0, 1) for image in x.unflatten(1, (7, 7))])
    out = attention(x, x, x)
    assert_close(out, expected)
    inputs = [x, *attention.parameters()]
    weight = drawn(*x.shape).detach().flip(-1)
    ours, theirs = (torch.autograd.grad(y, inputs, weight) for y in (out, expected))
    assert_close(ours, theirs)


def test_state_has_the_names_of_xformers(attention):
    convolutions = ["0", "2.conv0", "2.conv_spatial", "2.conv1", "3"]
    names = [f"block.{name}.{part}" for name in convolutions for part in ("weight", "bias")]
    assert list(attention.state_dict()) == names


def test_padding_at_the_border_is_like_a_smaller_image(attention):
    small = drawn(1, 25, 4)
    large = torch.full((1, 7, 7, 4), torch.nan, dtype=torch.float64)
    large[:, :5, :5] = small.unflatten(1, (5, 5))
    large = large.flatten(1, 2)
    keep = large.isfinite().all(-1)
    out = attention(large, large, large, key_padding_mask=keep)
    assert_close(out[keep], attention(small, small, small)[0])
    assert not out[~keep].any()


def test_padding_reaches_no_gradient(attention):
    keep = torch.rand(2, 16, generator=torch.Generator().manual_seed(1)) < 0.6
    x = drawn(2, 16, 4)
    dirty = x.detach().masked_fill(~keep.unsqueeze(-1), torch.nan).requires_grad_()
    results = [
        torch.autograd.grad(
            attention(y, y, y, key_padding_mask=keep).square().sum(), [y, *attention.parameters()]
        )
        for y in (x, dirty)
    ]
    assert_close(*results)
    assert not results[1][0][~keep].any()


def test_heads_are_images_of_their_own(attention):
    x = drawn(2, 3, 16, 4)
    folded = x.flatten(0, 1)
    assert_close(attention(x, x, x).flatten(0, 1), attention(folded, folded, folded))


def test_what_does_not_fit_is_refused(attention):
    x = drawn(1, 15, 4)
    with pytest.raises(ValueError, match=r"Visual: expected a square number of queries.* got 15"):
        attention(x, x, x)
    with pytest.raises(ValueError, match=r"as wide as dim_model=4, got \[1, 15, 3\]"):
        attention(*[x[..., :3]] * 3)
    with pytest.raises(ValueError, match="dim_model, an int of 1 or more, got 0"):
        Visual(0)
