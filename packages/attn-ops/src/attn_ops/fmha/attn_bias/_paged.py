"""Packed queries over keys in pages: any page of memory may hold any part of any sequence."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from attn_ops.fmha.attn_bias import _bands
from attn_ops.fmha.attn_bias._gappy import check_alike
from attn_ops.fmha.attn_bias._packed import (
    KeyInfo,
    PackedMask,
    check_pages,
    spaced_sequences,
)
from attn_ops.fmha.attn_bias._sequence_lengths import _SeqLenInfo
from attn_ops.fmha.attn_bias._spaced_lengths import _GappySeqInfo, _PaddedSeqLenInfo
from attn_ops.mask import Band, MaskSpec, Pages, Sequences

if TYPE_CHECKING:
    from typing_extensions import Self

    from attn_ops.fmha.attn_bias._integers import Lengths


@dataclass(eq=False)
class PagedMask(PackedMask[KeyInfo]):
    """Packed queries over keys in pages of `page_size` rows of key and value.

    Key t of sequence b lies in row block_tables[b, t // page_size] * page_size + t % page_size.
    Pages may lie in any order and be shared; entries of a table beyond the keys are never read.

    Raises: TypeError if `block_tables` is no tensor, or `page_size` no int; ValueError if they are
    no int32 tensor with a row for each sequence, and 1 or more.
    """

    block_tables: Tensor
    """int32 [n, pages of each sequence]; kept, not copied, so changes in place are seen."""
    page_size: int
    """Keys per page."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pages(type(self).__name__, self.block_tables, self.page_size)
        tables, count = self.block_tables, self.q_seqinfo.count
        if tables.dtype != torch.int32 or tables.dim() != 2 or tables.shape[0] != count:
            advice = ""
            if tables.dtype == torch.int64:
                advice = "; convert it once with .to(torch.int32), and update that in place"
            raise ValueError(
                f"{type(self).__name__}: expected block_tables, an int32 tensor [{count}, pages], "
                f"got {tables.dtype} {list(tables.shape)}{advice}"
            )

    def to(self, device: torch.device | str) -> Self:
        """Return the same mask, of the same class, on `device`."""
        return replace(super().to(device), block_tables=self.block_tables.to(device))

    def materialized_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Check the shape that `materialize` is asked for, and return that of its result.

        As in xFormers it is asked for with [..., Mq, n * pages of each sequence * page_size], the
        keys that tables have room for, and gives [..., Mq, pages in memory * page_size], of which
        the last is the greatest entry of `block_tables`.

        Raises: ValueError if `shape` is another.
        """
        room = self.block_tables.numel() * self.page_size
        num_queries, num_keys = self.natural_shape()
        if len(shape) < 2 or shape[-2:] != (num_queries, room):
            letter = "k" if len(shape) > 1 and shape[-2] == num_queries else "q"
            raise ValueError(
                f"materialize: {letter} shapes wrong: expected [..., {num_queries}, {room}], got "
                f"{shape}"
            )
        return (*shape[:-1], num_keys)

    def check_fits(self, num_queries: int, num_keys: int) -> None:
        """Check the rows of query as all masks do, and that those of key are whole pages.

        Raises: ValueError if they are not.
        """
        if torch.compiler.is_compiling():
            return
        expected = self.q_seqinfo.fixed_size
        if expected is not None and num_queries != expected:
            self._refuse_rows("query", num_queries, expected, self.q_seqinfo)
        if num_keys % self.page_size != 0:
            raise ValueError(
                f"memory_efficient_attention: expected key with whole pages of {self.page_size} "
                f"rows for this {type(self).__name__}, got {num_keys} rows"
            )

    def _pages(self) -> Pages:
        return Pages(self.block_tables, self.page_size)

    def natural_shape(self) -> tuple[int, int]:
        """Return the Mq and Mkv it is made for."""
        pages = int(self.block_tables.max()) + 1 if self.block_tables.numel() > 0 else 0
        return self.q_seqinfo.seqstart_py[-1], pages * self.page_size


@dataclass(eq=False)
class PagedBlockDiagonalPaddedKeysMask(PagedMask[_PaddedSeqLenInfo]):
    """Let the queries of each sequence see the first kv_seqlen[b] keys of its pages.

    Shapes: query [1, sum of the query lengths, H, K]; key and value [1, pages * page_size, H, K];
        with groups of heads, [1, ., G, H, K] each.

    >>> tables = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32)
    >>> mask = PagedBlockDiagonalPaddedKeysMask.from_seqlens([1, 1], [3, 1], tables, page_size=2)
    >>> mask.materialize((2, 8)).exp()
    tensor([[1., 0., 0., 0., 1., 1., 0., 0.],
            [0., 0., 1., 0., 0., 0., 0., 0.]])
    """

    _first_keys: Tensor = field(init=False, repr=False)
    """int32 [n]: zeros, where the keys of each sequence begin in its pages."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._first_keys = torch.zeros_like(self.k_seqinfo.seqlen)

    @classmethod
    def from_seqlens(
        cls,
        q_seqlen: Lengths,
        kv_seqlen: Lengths,
        block_tables: Tensor,
        page_size: int,
        *,
        device: torch.device | str | None = None,
        max_q_seqlen: int | None = None,
    ) -> Self:
        """Make a mask for sequences of these lengths.

        q_seqlen, kv_seqlen: Python ints, or an int32 or int64 tensor [n], never read on another
            device than the CPU. An int32 tensor `kv_seqlen` on `device` is kept, not copied.
        block_tables: int32 [n, pages of each sequence], on the device of query and key; kept, not
            copied, so changes in place are seen.
        page_size: keys per page, 1 or more.
        device: where query and key are; default: that of `block_tables`.
        max_q_seqlen: what query lengths changed in place may grow to.
        Raises: AssertionError if there are not as many key lengths as query lengths, or one is
            more than its pages hold; ValueError if one is negative, or `PagedMask` refuses;
            TypeError if the class has a window.
        """
        cls._check_needs_no_window()
        check_pages(f"{cls.__name__}.from_seqlens", block_tables, page_size)
        k_seqinfo = _paged_lengths(kv_seqlen, block_tables, page_size, device)
        where = block_tables.device if device is None else device
        q_seqinfo = _SeqLenInfo.from_seqlens(q_seqlen, device=where, max_seqlen=max_q_seqlen)
        return cls(q_seqinfo, k_seqinfo, block_tables.to(where), page_size)

    def mask_spec(self) -> MaskSpec:
        """Return the parts that kernels evaluate."""
        queries, keys = self.q_seqinfo, self.k_seqinfo
        sequences = Sequences(
            queries.seqstart, self._first_keys, keys.seqlen, queries.capacity, keys.capacity
        )
        return MaskSpec(self._band(), sequences=sequences, pages=self._pages())


@dataclass(eq=False)
class PagedBlockDiagonalCausalWithOffsetPaddedKeysMask(PagedBlockDiagonalPaddedKeysMask):
    """Let query i of each sequence see its keys j <= i + s, with s keys more than queries."""

    def _band(self) -> Band:
        return _bands.CAUSAL_FROM_BOTTOM_RIGHT


@dataclass(eq=False)
class PagedBlockDiagonalCausalLocalPaddedKeysMask(PagedBlockDiagonalPaddedKeysMask):
    """Let query i of each sequence see its keys i + s - window_size < j <= i + s.

    Raises: TypeError if the window is no int; ValueError if it is not positive.
    """

    _made_by: ClassVar[str] = (
        "from_seqlens_local(q_seqlen, kv_seqlen, block_tables, page_size, window_size)"
    )

    _window_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _bands.check_window(self, self._window_size)

    @classmethod
    def from_seqlens_local(
        cls,
        q_seqlen: Lengths,
        kv_seqlen: Lengths,
        block_tables: Tensor,
        page_size: int,
        window_size: int,
        *,
        device: torch.device | str | None = None,
    ) -> PagedBlockDiagonalCausalLocalPaddedKeysMask:
        """Make a mask for sequences of these lengths, as `from_seqlens` does."""
        check_pages(f"{cls.__name__}.from_seqlens_local", block_tables, page_size)
        k_seqinfo = _paged_lengths(kv_seqlen, block_tables, page_size, device)
        where = block_tables.device if device is None else device
        q_seqinfo = _SeqLenInfo.from_seqlens(q_seqlen, device=where)
        return cls(q_seqinfo, k_seqinfo, block_tables.to(where), page_size, window_size)

    def _band(self) -> Band:
        return _bands.causal_window_from_bottom_right(self._window_size)


@dataclass(eq=False)
class PagedBlockDiagonalGappyKeysMask(PagedMask[_GappySeqInfo]):
    """Let the queries of each sequence see kv_seqlen[b] keys of its pages, from kv_seqstarts[b] on.

    Shapes: query [1, sum of the query lengths, H, K]; key and value [1, pages * page_size, H, K];
        with groups of heads, [1, ., G, H, K] each.

    >>> tables = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32)
    >>> mask = PagedBlockDiagonalGappyKeysMask.from_seqlens([1, 1], [1, 0], [2, 1], tables, 2)
    >>> mask.materialize((2, 8)).exp()
    tensor([[1., 0., 0., 0., 0., 1., 0., 0.],
            [0., 0., 1., 0., 0., 0., 0., 0.]])
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        held = self.block_tables.shape[1] * self.page_size
        keys = self.k_seqinfo
        if keys.are_known and any(first < 0 or last > held for first, last in keys.intervals()):
            raise ValueError(
                f"{type(self).__name__}: expected keys within the {held} slots of their pages, got "
                f"{list(keys.intervals())}"
            )

    @classmethod
    def from_seqlens(
        cls,
        q_seqlen: Lengths,
        kv_seqstarts: Lengths,
        kv_seqlen: Lengths,
        block_tables: Tensor,
        page_size: int,
        *,
        device: torch.device | str | None = None,
        max_q_seqlen: int | None = None,
        max_kv_seqlen: int | None = None,
    ) -> Self:
        """Make a mask for sequences of these lengths.

        kv_seqstarts: Python ints, or an int32 or int64 tensor [n]: the first key that sequence b
            sees, counted from the first of its own pages. Padded keys without the first one are
            kv_seqstarts = [1, 1].
        The other arguments are those of `PagedBlockDiagonalPaddedKeysMask.from_seqlens`.

        Raises: AssertionError if the numbers of lengths and starts differ; ValueError if there
            are none, a length is negative, or keys lie beyond their pages.
        """
        check_pages(f"{cls.__name__}.from_seqlens", block_tables, page_size)
        check_alike(cls, len(q_seqlen), len(kv_seqlen), len(kv_seqstarts))
        where = block_tables.device if device is None else device
        q_seqinfo = _SeqLenInfo.from_seqlens(q_seqlen, device=where, max_seqlen=max_q_seqlen)
        k_seqinfo = _GappySeqInfo.from_seqlens_gappy(
            kv_seqstarts, kv_seqlen, paged=True, device=where, max_seqlen=max_kv_seqlen
        )
        return cls(q_seqinfo, k_seqinfo, block_tables.to(where), page_size)

    def mask_spec(self) -> MaskSpec:
        """Return the parts that kernels evaluate."""
        sequences = spaced_sequences(self.q_seqinfo, self.k_seqinfo)
        return MaskSpec(self._band(), sequences=sequences, pages=self._pages())


@dataclass(eq=False)
class PagedBlockDiagonalCausalWithOffsetGappyKeysMask(PagedBlockDiagonalGappyKeysMask):
    """Let query i of each sequence see its keys j <= i + s, with s keys more than queries."""

    def _band(self) -> Band:
        return _bands.CAUSAL_FROM_BOTTOM_RIGHT


def _paged_lengths(
    kv_seqlen: Lengths, block_tables: Tensor, page_size: int, device: torch.device | str | None
) -> _PaddedSeqLenInfo:
    where = block_tables.device if device is None else device
    held = block_tables.shape[1] * page_size
    return _PaddedSeqLenInfo.from_seqlens_padded(kv_seqlen, held, device=where)
