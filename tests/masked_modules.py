"""Calls of exact mechanisms with every kind of mask, compared with dense attention."""

import torch

from reference.modules.dense_attention import attend

BATCH, HEADS, LENGTH = 2, 3, 14

_GENERATOR = torch.Generator().manual_seed(5)
MASKS = {
    "none": None,
    "bool": torch.rand(LENGTH, LENGTH, generator=_GENERATOR) < 0.7,
    "per-batch": torch.rand(BATCH, LENGTH, LENGTH, generator=_GENERATOR) < 0.7,
    "per-head": torch.rand(1, HEADS, LENGTH, LENGTH, generator=_GENERATOR) < 0.7,
    "per-key": torch.rand(1, LENGTH, generator=_GENERATOR) < 0.7,
    "additive": torch.randn(BATCH, HEADS, LENGTH, LENGTH, generator=_GENERATOR).double(),
    "larger": torch.rand(LENGTH + 3, LENGTH + 2, generator=_GENERATOR) < 0.7,
}
PADDING = torch.tensor([[True] * 11 + [False] * 3, [True] * 5 + [False] + [True] * 8])


def make_inputs(length=LENGTH, **options):
    """Return the same q, k and v [B, H, M, K] at each call, float64 unless told."""
    options = {"dtype": torch.float64, **options}
    generator = torch.Generator().manual_seed(11)
    shapes = [(BATCH, HEADS, length, width) for width in (8, 8, 5)]
    return [torch.randn(shape, generator=generator, **options) for shape in shapes]


def assert_attends(attention, keep, mask=None, padding=None, *, is_folded=False):
    """Check outputs and gradients against dense attention over `keep` [M, M] and the masks."""
    inputs = make_inputs(keep.shape[0], requires_grad=True)
    expected = attend(*inputs, *_dense(keep, mask, padding))
    if is_folded:
        ours = attention(*(x.flatten(0, 1) for x in inputs), mask, padding)
        ours = ours.unflatten(0, (BATCH, HEADS))
    else:
        ours = attention(*inputs, mask, padding)
    torch.testing.assert_close(ours, expected)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)).double()
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs, weight),
        torch.autograd.grad(expected, inputs, weight),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def _dense(keep, mask, padding):
    """Return what is kept and what is added, both broadcastable to [B, H, M, M]."""
    length, bias = keep.shape[0], None
    if mask is not None:
        mask = mask[..., :length, :length]
        mask = mask.unsqueeze(1) if mask.dim() == 3 else mask
        if mask.dtype == torch.bool:
            keep = keep & mask
        else:
            bias = mask
    return (keep if padding is None else keep & padding[:, None, None, :length]), bias
