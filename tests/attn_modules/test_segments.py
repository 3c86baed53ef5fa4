"""Means of segments against loops over the kept rows."""

import pytest
import torch
from torch.testing import assert_close

from attn_modules._segments import segment_means
from reference.modules.nystrom import segments


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("length", "number"), [(12, 4), (13, 4), (15, 4), (7, 7), (5, 1)])
def test_later_segments_are_longer(length, number):
    rows = normal(2, length, 3, 2)
    means, used = segment_means(rows, None, number)
    expected = [rows[:, list(part)].mean(1) for part in segments(length, number)]
    assert_close(means, torch.stack(expected, 1))
    assert used is None


@pytest.mark.parametrize("by_head", [False, True], ids=["by batch", "by head"])
@pytest.mark.parametrize("content", [0.0, torch.nan, torch.inf])
def test_padding_counts_nowhere(by_head, content):
    rows = normal(3, 14, 2, 2)
    kept = torch.rand(3, 14, 2 if by_head else 1, 1, generator=torch.Generator().manual_seed(1))
    kept = kept < torch.tensor([0.9, 0.15, 0.0])[:, None, None, None]
    assert kept.sum(1).flatten().tolist()[-1] == 0
    padded = rows.masked_fill(~kept, content).requires_grad_()
    means, used = segment_means(padded, kept, 4)
    used = used.expand(3, 4, 2, 1)
    for b in range(3):
        for h in range(2):
            own = rows[b, kept[b, :, h if by_head else 0, 0], h]
            for s, part in enumerate(segments(len(own), 4)):
                assert used[b, s, h, 0] == bool(part)
                expected = own[list(part)].mean(0) if part else torch.zeros(2, dtype=rows.dtype)
                assert_close(means[b, s, h], expected)
    means.sum().backward()
    assert padded.grad.isfinite().all()
    assert not padded.grad.masked_select(~kept).any()


def test_means_of_short_dtypes_are_float32():
    rows = torch.full((1, 4096, 1, 1), 1.001, dtype=torch.bfloat16)
    means, _ = segment_means(rows, None, 2)
    assert means.dtype == torch.float32
    assert torch.equal(means, torch.ones(1, 2, 1, 1))
