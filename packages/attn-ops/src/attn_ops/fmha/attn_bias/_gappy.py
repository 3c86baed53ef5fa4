"""Packed queries over keys that lie anywhere, with gaps between the sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from attn_ops.fmha.attn_bias import _bands
from attn_ops.fmha.attn_bias._integers import Integers, Lengths, check_size
from attn_ops.fmha.attn_bias._packed import (
    PackedMask,
    check_paged_type,
    check_pages,
    spaced_sequences,
)
from attn_ops.fmha.attn_bias._sequence_lengths import _SeqLenInfo
from attn_ops.fmha.attn_bias._spaced_lengths import _GappySeqInfo
from attn_ops.mask import Band, MaskSpec

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from attn_ops.fmha.attn_bias._paged import PagedBlockDiagonalGappyKeysMask


@dataclass(eq=False)
class BlockDiagonalGappyKeysMask(PackedMask[_GappySeqInfo]):
    """Let the queries of each sequence see its keys, kv_seqlen[b] rows from kv_seqstarts[b] on.

    Shapes: query [1, sum of the query lengths, H, K]; key and value [1, kv_seqstarts[n], H, K].

    >>> mask = BlockDiagonalGappyKeysMask.from_seqlens([1, 1], [1, 4, 6], [2, 1])
    >>> mask.materialize((2, 6)).exp()
    tensor([[0., 1., 1., 0., 0., 0.],
            [0., 0., 0., 0., 1., 0.]])
    """

    _paged_name: ClassVar[str] = "PagedBlockDiagonalGappyKeysMask"
    """The class of the same mask over pages."""

    @classmethod
    def from_seqlens(
        cls,
        q_seqlen: Lengths,
        kv_seqstarts: Lengths,
        kv_seqlen: Lengths,
        *,
        device: torch.device | str | None = None,
        max_q_seqlen: int | None = None,
        max_kv_seqlen: int | None = None,
    ) -> Self:
        """Make a mask for n sequences of these lengths.

        q_seqlen, kv_seqlen: Python ints, or an int32 or int64 tensor [n].
        kv_seqstarts: likewise, [n + 1]: where each sequence's keys begin; the last entry is the
            length of key and value.
        device: where query and key are; default: that of the tensors, or of this build's kernels.
        max_q_seqlen, max_kv_seqlen: what lengths changed in place may grow to.
        Raises: AssertionError if there are not as many key lengths as query lengths; ValueError
            if there are none, or not one start more, or a length is negative; TypeError if the
            class has a window.
        """
        cls._check_needs_no_window()
        check_alike(cls, len(q_seqlen), len(kv_seqlen))
        q_seqinfo = _SeqLenInfo.from_seqlens(q_seqlen, device=device, max_seqlen=max_q_seqlen)
        k_seqinfo = _GappySeqInfo.from_seqlens_gappy(
            kv_seqstarts, kv_seqlen, paged=False, device=device, max_seqlen=max_kv_seqlen
        )
        return cls(q_seqinfo=q_seqinfo, k_seqinfo=k_seqinfo)

    def make_paged(
        self,
        block_tables: Tensor,
        page_size: int,
        notional_padding: int,
        paged_type: type[PagedBlockDiagonalGappyKeysMask],
    ) -> PagedBlockDiagonalGappyKeysMask:
        """Return a mask of class `paged_type` for the same lengths, the keys lying in pages.

        Here sequence b starts at row b * notional_padding + its offset; there at that offset from
        its first page. The key lengths are shared: what changes them in place changes both.

        block_tables: int32 [n, pages of each sequence], on the device of query and key; kept, not
            copied, so changes in place are seen.
        page_size: keys per page; it divides `notional_padding`.
        paged_type: the class that lets queries see what this mask does.
        Raises: ValueError if `page_size` does not divide `notional_padding`, `paged_type` has
            another band, or `block_tables` is another tensor; AssertionError if a sequence starts,
            or is longer, than its pages hold.
        """
        check_pages(f"{type(self).__name__}.make_paged", block_tables, page_size)
        windows = self._windows()
        check_paged_type(self, paged_type, self._paged_name)
        check_size(f"{type(self).__name__}.make_paged", "notional_padding", notional_padding, 0)
        if notional_padding % page_size != 0:
            raise ValueError(
                f"{type(self).__name__}.make_paged: expected a notional_padding that page_size "
                f"divides, got {notional_padding} and {page_size}"
            )
        held = block_tables.shape[1] * page_size
        offsets = self._offsets(notional_padding, block_tables.device)
        starts_fit = not offsets.are_known or all(0 <= at < held for at in offsets.tolist())
        if not starts_fit or self.k_seqinfo.capacity > held:
            raise AssertionError(
                f"{type(self).__name__}.make_paged: expected keys that begin within the {held} "
                f"slots of their pages and are no longer, got starts {offsets.tolist()} and a "
                f"length of {self.k_seqinfo.capacity}"
            )
        k_seqinfo = self.k_seqinfo.with_starts(offsets)
        return paged_type(self.q_seqinfo, k_seqinfo, block_tables, page_size, *windows)

    def _offsets(self, notional_padding: int, device: torch.device) -> Integers:
        """Return where each sequence begins in its own stretch of `notional_padding`, [n]."""
        count = self.k_seqinfo.count
        if not self.k_seqinfo.are_known:
            stretches = notional_padding * torch.arange(count, dtype=torch.int32, device=device)
            return Integers(self.k_seqinfo.seqstart[:count].to(device) - stretches)
        starts = self.k_seqinfo.seqstart_py[:count]
        return Integers.of([at - b * notional_padding for b, at in enumerate(starts)], device)

    def _windows(self) -> tuple[int, ...]:
        """Return what its paged form needs to know besides lengths and pages."""
        return ()

    def mask_spec(self) -> MaskSpec:
        """Return the parts that kernels evaluate."""
        return MaskSpec(self._band(), sequences=spaced_sequences(self.q_seqinfo, self.k_seqinfo))


@dataclass(eq=False)
class BlockDiagonalCausalWithOffsetGappyKeysMask(BlockDiagonalGappyKeysMask):
    """Let query i of each sequence see its keys j <= i + s, with s keys more than queries."""

    _paged_name: ClassVar[str] = "PagedBlockDiagonalCausalWithOffsetGappyKeysMask"

    def _band(self) -> Band:
        return _bands.CAUSAL_FROM_BOTTOM_RIGHT


@dataclass(eq=False)
class BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask(BlockDiagonalGappyKeysMask):
    """Let query i see its keys i + s - window_left <= j <= i + s + window_right.

    Raises: TypeError if a window is no int; ValueError if one is negative.
    """

    _made_by: ClassVar[str] = (
        "from_seqlens_local_gappy(q_seqlen, kv_seqstarts, kv_seqlen, window_left, window_right)"
    )

    window_left: int
    window_right: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _bands.check_sides(self, self.window_left, self.window_right)

    @classmethod
    def from_seqlens_local_gappy(
        cls,
        q_seqlen: Lengths,
        kv_seqstarts: Lengths,
        kv_seqlen: Lengths,
        window_left: int,
        window_right: int,
        device: torch.device | str | None = None,
    ) -> BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask:
        """Make a mask for sequences of these lengths, as `from_seqlens` does."""
        check_alike(cls, len(q_seqlen), len(kv_seqlen))
        q_seqinfo = _SeqLenInfo.from_seqlens(q_seqlen, device=device)
        k_seqinfo = _GappySeqInfo.from_seqlens_gappy(
            kv_seqstarts, kv_seqlen, paged=False, device=device
        )
        return cls(q_seqinfo, k_seqinfo, window_left, window_right)

    def _windows(self) -> tuple[int, ...]:
        raise NotImplementedError(
            f"{type(self).__name__}.make_paged: no mask of pages has a window on both sides"
        )

    def _band(self) -> Band:
        return _bands.window_from_bottom_right(self.window_left, self.window_right)


def check_alike(mask_type: type, *counts: int) -> None:
    """Check the numbers of lengths and starts.

    Raises: AssertionError if they differ.
    """
    if len(set(counts)) > 1:
        raise AssertionError(
            f"{mask_type.__name__}: expected as many lengths of keys as of queries, got {counts}"
        )
