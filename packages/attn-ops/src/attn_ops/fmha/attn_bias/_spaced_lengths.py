"""Where the sequences of one dimension lie that have room between them: padded, or anywhere.

The names and fields are those of `xformers.ops.fmha.attn_bias`, which users of masks read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attn_ops.fmha.attn_bias._integers import (
    Integers,
    Lengths,
    as_integers,
    check_is_int,
    check_update,
    checked_lengths,
)
from attn_ops.fmha.attn_bias._sequence_lengths import _SeqLenInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor


class _SpacedSeqLenInfo(_SeqLenInfo):
    """Sequences that begin at `seqstart` and are `seqlen` long, with room between them."""

    def __init__(
        self,
        seqstart: Tensor | Integers,
        max_seqlen: int | None,
        min_seqlen: int | None,
        seqstart_py: list[int] | None,
        seqlen: Tensor | Integers,
        seqlen_py: list[int] | None = None,
    ) -> None:
        super().__init__(seqstart, max_seqlen, min_seqlen, seqstart_py)
        self._lengths = as_integers(seqlen, seqlen_py)

    @property
    def seqlen(self) -> Tensor:
        """How many entries of each sequence are in use, int32 [n]."""
        return self._lengths.tensor

    @seqlen.setter
    def seqlen(self, lengths: Tensor) -> None:
        self._lengths = Integers.of(lengths)
        self._max_seqlen = self._min_seqlen = None

    @property
    def seqlen_py(self) -> list[int]:
        """`seqlen` as a list; reads the device if the lengths came as a tensor."""
        return self._lengths.tolist()

    @seqlen_py.setter
    def seqlen_py(self, lengths: list[int]) -> None:
        self._lengths = self._lengths.told(lengths)

    @property
    def count(self) -> int:
        """How many sequences there are."""
        return self.seqlen.shape[0]

    @property
    def are_known(self) -> bool:
        """Whether `lengths` and `intervals` cost no wait for a device."""
        return self._starts.are_known and self._lengths.are_known

    def intervals(self) -> Iterator[tuple[int, int]]:
        """Yield where the part in use of each sequence begins and ends."""
        for start, length in zip(self.seqstart_py, self.seqlen_py, strict=False):
            yield start, start + length

    def lengths(self) -> list[int]:
        """Return the length of each sequence."""
        return self.seqlen_py

    def split(self, x: Tensor, batch_sizes: Sequence[int] | None = None) -> list[Tensor]:
        """Refuse: there is room between these sequences.

        Raises: NotImplementedError always.
        """
        del x, batch_sizes
        raise NotImplementedError(f"{type(self).__name__}.split")

    def from_seqlens_inplace(self, seqlens: object) -> None:
        """Refuse: lengths alone would move the starts.

        Raises: TypeError always.
        """
        del seqlens
        raise TypeError(
            f"{type(self).__name__}.from_seqlens_inplace: expected sequences without gaps, got "
            "some with places of their own; change `seqlen`, or call from_seqlens_padded_inplace"
        )

    def _replace_lengths(self, seqlens: Lengths, capacity: int | None) -> None:
        integers, most, least = checked_lengths(seqlens, self.seqlen.device, None)
        check_update(integers, self.seqlen, most, capacity)
        self._lengths.copy_(integers)
        self._max_seqlen = None if most is None else max(most, self._max_seqlen or 0)
        self._min_seqlen = least


class _PaddedSeqLenInfo(_SpacedSeqLenInfo):
    """The division of a dimension into sequences padded to one length.

    >>> info = _PaddedSeqLenInfo.from_seqlens_padded([2, 3, 2], 4)
    >>> info.seqstart_py, info.seqlen_py, info.padding
    ([0, 4, 8, 12], [2, 3, 2], 4)
    >>> list(info.intervals())
    [(0, 2), (4, 7), (8, 10)]
    """

    def __init__(
        self,
        seqstart: Tensor | Integers,
        max_seqlen: int | None,
        min_seqlen: int | None,
        seqstart_py: list[int] | None,
        seqlen: Tensor | Integers,
        seqlen_py: list[int] | None,
        padding: int,
    ) -> None:
        super().__init__(seqstart, max_seqlen, min_seqlen, seqstart_py, seqlen, seqlen_py)
        self.padding = padding
        if self.seqstart.shape[0] != self.count + 1:
            raise AssertionError(
                "_PaddedSeqLenInfo: expected one start more than lengths, got "
                f"{self.seqstart.shape[0]} and {self.count}"
            )

    @classmethod
    def from_seqlens(cls, seqlens: object, **_options: object) -> _PaddedSeqLenInfo:
        """Refuse: the padding is needed too.

        Raises: RuntimeError always.
        """
        del seqlens
        raise RuntimeError("_PaddedSeqLenInfo: use from_seqlens_padded, or _SeqLenInfo")

    @classmethod
    def from_seqlens_padded(
        cls,
        seqlens: Lengths,
        padding: int,
        *,
        device: torch.device | str | None = None,
    ) -> _PaddedSeqLenInfo:
        """Divide a dimension of length padding * n.

        Raises: AssertionError if a length is above `padding`; ValueError if one is negative;
        TypeError if `padding` is no int.
        """
        check_is_int("attn_bias", "kv_padding", padding)
        integers, most, least = checked_lengths(seqlens, device, None)
        return cls._padded(integers, padding, most, least)

    @classmethod
    def _padded(
        cls, lengths: Integers, padding: int, most: int | None, least: int | None
    ) -> _PaddedSeqLenInfo:
        if padding < 0 or (most is not None and most > padding):
            raise AssertionError(
                f"attn_bias: expected lengths of at most the padding {padding}, got "
                f"{lengths.tolist()}"
            )
        count = lengths.tensor.shape[0]
        starts = Integers.of([padding * i for i in range(count + 1)], lengths.tensor.device)
        return cls(starts, most, least, None, lengths, None, padding)

    def with_padding(self, padding: int) -> _PaddedSeqLenInfo:
        """Return the same lengths, not a copy of them, with another padding.

        Raises: AssertionError if a length is above `padding`.
        """
        return self._padded(self._lengths, padding, self._max_seqlen, self._min_seqlen)

    @property
    def capacity(self) -> int:
        """The length no sequence can exceed: the padding."""
        return self.padding

    def to(self, device: torch.device | str) -> _PaddedSeqLenInfo:
        """Return the same division on `device`."""
        if self.seqlen.device == torch.device(device):
            return self
        return self._padded(
            self._lengths.to(device), self.padding, self._max_seqlen, self._min_seqlen
        )

    def from_seqlens_padded_inplace(self, seqlens: Lengths) -> None:
        """Change the lengths where kernels read them, so that a captured graph sees new ones.

        Raises: AssertionError if there are more or fewer than before, or one above the padding.
        """
        self._replace_lengths(seqlens, self.padding)


class _GappySeqInfo(_SpacedSeqLenInfo):
    """Sequences anywhere in a dimension: each has a start and a length.

    For a mask without pages, `seqstart` has one more entry, the length of the dimension. For one
    with pages it counts from the first page of each sequence, and has none.

    >>> info = _GappySeqInfo.from_seqlens_gappy([0, 7, 12, 14], [6, 3, 1], paged=False)
    >>> list(info.intervals())
    [(0, 6), (7, 10), (12, 13)]
    """

    @classmethod
    def from_seqlens(cls, seqlens: object, **_options: object) -> _GappySeqInfo:
        """Refuse: the starts are needed too.

        Raises: NotImplementedError always.
        """
        del seqlens
        raise NotImplementedError("_GappySeqInfo: use from_seqlens_gappy, or _SeqLenInfo")

    @classmethod
    def from_seqlens_gappy(
        cls,
        seqstarts: Lengths,
        seqlens: Lengths,
        paged: bool,
        *,
        device: torch.device | str | None = None,
        max_seqlen: int | None = None,
    ) -> _GappySeqInfo:
        """Place sequences of `seqlens` at `seqstarts`.

        Raises: ValueError if there is none, if there are not as many starts as lengths (one more
        without pages), or if a length is negative or above `max_seqlen`.
        """
        if len(seqlens) == 0:
            raise ValueError("attn_bias: expected one sequence or more, got no lengths")
        if len(seqstarts) - len(seqlens) != (0 if paged else 1):
            expected = "as many starts as lengths" if paged else "one start more than lengths"
            raise ValueError(
                f"attn_bias: expected {expected}, got {len(seqstarts)} starts and {len(seqlens)} "
                "lengths"
            )
        lengths, most, least = checked_lengths(seqlens, device, max_seqlen)
        starts = Integers.of(seqstarts, lengths.tensor.device)
        return cls._placed(starts, lengths, most, least)

    @classmethod
    def _placed(
        cls, starts: Integers, lengths: Integers, most: int | None, least: int | None
    ) -> _GappySeqInfo:
        return cls(starts, most, least, None, lengths)

    def with_starts(self, starts: Integers) -> _GappySeqInfo:
        """Return the same lengths, not a copy of them, at other starts."""
        where, lengths = starts.tensor.device, self._lengths
        if lengths.tensor.device != where:
            lengths = lengths.to(where)
        return self._placed(starts, lengths, self._max_seqlen, self._min_seqlen)

    def to(self, device: torch.device | str) -> _GappySeqInfo:
        """Return the same division on `device`."""
        if self.seqlen.device == torch.device(device):
            return self
        return self.with_starts(self._starts.to(device))
