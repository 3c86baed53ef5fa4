"""Packed queries over keys that are padded to one length: a cache with room to grow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from attn_ops.fmha.attn_bias import _bands
from attn_ops.fmha.attn_bias._packed import (
    PackedMask,
    check_paged_type,
    check_pages,
    spaced_sequences,
)
from attn_ops.fmha.attn_bias._sequence_lengths import _SeqLenInfo
from attn_ops.fmha.attn_bias._spaced_lengths import _PaddedSeqLenInfo
from attn_ops.mask import Band, MaskSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from typing_extensions import Self

    from attn_ops.fmha.attn_bias._integers import Lengths
    from attn_ops.fmha.attn_bias._paged import PagedBlockDiagonalPaddedKeysMask


@dataclass(eq=False)
class BlockDiagonalPaddedKeysMask(PackedMask[_PaddedSeqLenInfo]):
    """Let the queries of each sequence see the keys in use of their own sequence.

    Sequence b has the rows [b * padding, (b + 1) * padding) of key and value, and the first
    kv_seqlen[b] of them are in use; what the others hold never matters.

    Shapes: query [1, sum of the query lengths, H, K]; key and value [1, n * padding, H, K].

    >>> mask = BlockDiagonalPaddedKeysMask.from_seqlens([1, 1], kv_padding=4, kv_seqlen=[2, 3])
    >>> mask.materialize((2, 8)).exp()
    tensor([[1., 1., 0., 0., 0., 0., 0., 0.],
            [0., 0., 0., 0., 1., 1., 1., 0.]])
    """

    _paged_name: ClassVar[str] = "PagedBlockDiagonalPaddedKeysMask"
    """The class of the same mask over pages."""

    @classmethod
    def from_seqlens(
        cls,
        q_seqlen: Lengths,
        kv_padding: int,
        kv_seqlen: Lengths,
        causal_diagonal: object = None,
        *,
        device: torch.device | str | None = None,
        max_q_seqlen: int | None = None,
    ) -> Self:
        """Make a mask for sequences of these lengths, their keys padded to `kv_padding`.

        q_seqlen, kv_seqlen: Python ints, or an int32 or int64 tensor [n], never read on another
            device than the CPU. An int32 tensor `kv_seqlen` on `device` is kept, not copied.
        causal_diagonal: ignored, as xFormers does.
        device: where query and key are; default: that of the tensors, or of this build's kernels.
        max_q_seqlen: what query lengths changed in place may grow to.
        Raises: AssertionError if there are not as many key lengths as query lengths, or one is
            above `kv_padding`; ValueError if one is negative; TypeError if one, or `kv_padding`,
            is no int, or the class has a window.
        """
        del causal_diagonal
        cls._check_needs_no_window()
        q_seqinfo = _SeqLenInfo.from_seqlens(q_seqlen, device=device, max_seqlen=max_q_seqlen)
        k_seqinfo = _PaddedSeqLenInfo.from_seqlens_padded(kv_seqlen, kv_padding, device=device)
        return cls(q_seqinfo=q_seqinfo, k_seqinfo=k_seqinfo)

    def make_paged(
        self,
        block_tables: Tensor,
        page_size: int,
        paged_type: type[PagedBlockDiagonalPaddedKeysMask],
    ) -> PagedBlockDiagonalPaddedKeysMask:
        """Return a mask of class `paged_type` for the same lengths, the keys lying in pages.

        It shares the key lengths with this one: what changes them in place changes both.

        block_tables: int32 [n, pages of each sequence], on the device of query and key; kept, not
            copied, so changes in place are seen.
        page_size: keys per page, 1 or more.
        paged_type: the class that lets queries see what this mask does.
        Raises: AssertionError if a sequence has more keys than its pages hold; ValueError if
            `paged_type` has another band, or `block_tables` is another tensor.
        """
        check_pages(f"{type(self).__name__}.make_paged", block_tables, page_size)
        windows = self._windows()
        check_paged_type(self, paged_type, self._paged_name)
        k_seqinfo = self.k_seqinfo.with_padding(block_tables.shape[1] * page_size)
        return paged_type(self.q_seqinfo, k_seqinfo, block_tables, page_size, *windows)

    def _windows(self) -> tuple[int, ...]:
        """Return what its paged form needs to know besides lengths and pages."""
        return ()

    def mask_spec(self) -> MaskSpec:
        """Return the parts that kernels evaluate."""
        return MaskSpec(self._band(), sequences=spaced_sequences(self.q_seqinfo, self.k_seqinfo))


@dataclass(eq=False)
class BlockDiagonalCausalWithOffsetPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    """Let query i of each sequence see its keys in use j <= i + s, s of them more than queries.

    With more queries than keys the first queries see nothing, and their output is 0.
    """

    _paged_name: ClassVar[str] = "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask"

    causal_diagonal: object = None
    """Ignored, as xFormers does."""

    def _band(self) -> Band:
        return _bands.CAUSAL_FROM_BOTTOM_RIGHT


@dataclass(eq=False)
class BlockDiagonalLocalAttentionPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    """Let query i see its keys in use i + s - window_left <= j <= i + s + window_right.

    Raises: TypeError if a window is no int; ValueError if one is negative.
    """

    _made_by: ClassVar[str] = (
        "from_seqlens_local(q_seqlen, kv_padding, kv_seqlen, window_left, window_right)"
    )

    window_left: int
    window_right: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _bands.check_sides(self, self.window_left, self.window_right)

    @classmethod
    def from_seqlens_local(
        cls,
        q_seqlen: Lengths,
        kv_padding: int,
        kv_seqlen: Lengths,
        window_left: int,
        window_right: int,
    ) -> BlockDiagonalLocalAttentionPaddedKeysMask:
        """Make a mask for sequences of these lengths, as `from_seqlens` does."""
        q_seqinfo = _SeqLenInfo.from_seqlens(q_seqlen)
        k_seqinfo = _PaddedSeqLenInfo.from_seqlens_padded(kv_seqlen, kv_padding)
        return cls(q_seqinfo, k_seqinfo, window_left, window_right)

    def _windows(self) -> tuple[int, ...]:
        raise NotImplementedError(
            f"{type(self).__name__}.make_paged: no mask of pages has a window on both sides; use "
            "BlockDiagonalCausalLocalAttentionPaddedKeysMask"
        )

    def _band(self) -> Band:
        return _bands.window_from_bottom_right(self.window_left, self.window_right)


@dataclass(eq=False)
class BlockDiagonalCausalLocalAttentionPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    """Let query i of each sequence see its keys in use i + s - window_size < j <= i + s.

    Raises: TypeError if the window is no int; ValueError if it is not positive.
    """

    _paged_name: ClassVar[str] = "PagedBlockDiagonalCausalLocalPaddedKeysMask"
    _made_by: ClassVar[str] = "from_seqlens_local(q_seqlen, kv_padding, kv_seqlen, window_size)"

    _window_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _bands.check_window(self, self._window_size)

    @classmethod
    def from_seqlens_local(
        cls, q_seqlen: Lengths, kv_padding: int, kv_seqlen: Lengths, window_size: int
    ) -> BlockDiagonalCausalLocalAttentionPaddedKeysMask:
        """Make a mask for sequences of these lengths, as `from_seqlens` does."""
        q_seqinfo = _SeqLenInfo.from_seqlens(q_seqlen)
        k_seqinfo = _PaddedSeqLenInfo.from_seqlens_padded(kv_seqlen, kv_padding)
        return cls(q_seqinfo, k_seqinfo, window_size)

    def _windows(self) -> tuple[int, ...]:
        return (self._window_size,)

    def _band(self) -> Band:
        return _bands.causal_window_from_bottom_right(self._window_size)
