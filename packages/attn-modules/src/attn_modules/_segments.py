"""Means of the rows of a sequence, segment by segment, where padded rows count nowhere."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_means(rows: Tensor, kept: Tensor | None, segments: int) -> tuple[Tensor, Tensor | None]:
    """Split the n kept rows of each sequence, in order, and return the mean of each segment.

    The last n % segments of them are one row longer than the others, which are empty, and their
    means 0, where n < segments.

    Shapes: rows [B, M, H, K]; kept bool [B or 1, M, H or 1, 1], or None for all; means
        [B, segments, H, K]; and which are of any row: bool [B or 1, segments, H or 1, 1], or None
        without `kept`.
    Numerics: the means of short dtypes are float32.
    """
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if kept is None:
        every = torch.ones(1, rows.shape[1], 1, 1, dtype=torch.bool, device=rows.device)
        segment, length = _split(every, segments)
    else:
        segment, length = _split(kept, segments)
        wide = wide.masked_fill(~kept, 0.0)
    sums = wide.new_zeros(rows.shape[0], segments, *rows.shape[2:])
    sums = sums.scatter_add(1, segment.expand(rows.shape), wide)
    return sums / length.clamp_min(1), None if kept is None else length > 0


def _split(kept: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """Return the segment of each row, and the length of each segment; padded rows get any."""
    rank = (kept.cumsum(1) - 1).clamp_min(0)
    count = kept.sum(1, keepdim=True)
    shorter, longer = count // segments, count // segments + 1
    first_longer = segments - count % segments
    begin = first_longer * shorter
    segment = torch.where(
        rank < begin, rank // shorter.clamp_min(1), first_longer + (rank - begin) // longer
    )
    # A padded row ahead of every other belongs, like all, to some segment that there is.
    segment = segment.clamp_max(segments - 1)
    index = torch.arange(segments, device=kept.device)[None, :, None, None]
    return segment, torch.where(index < first_longer, shorter, longer)
