"""Where the sequences of one packed dimension lie.

The names and fields are those of `xformers.ops.fmha.attn_bias`, which users of masks read.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attn_ops.fmha.attn_bias._integers import (
    Integers,
    Lengths,
    as_integers,
    check_update,
    checked_lengths,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class _SeqLenInfo:
    """The division of a dimension into sequences that follow one another.

    >>> info = _SeqLenInfo.from_seqlens([2, 3, 2])
    >>> info.seqstart
    tensor([0, 2, 5, 7], dtype=torch.int32)
    >>> info.max_seqlen, info.min_seqlen, list(info.intervals())
    (3, 2, [(0, 2), (2, 5), (5, 7)])
    """

    def __init__(
        self,
        seqstart: Tensor | Integers,
        max_seqlen: int | None = None,
        min_seqlen: int | None = None,
        seqstart_py: list[int] | None = None,
    ) -> None:
        self._starts = as_integers(seqstart, seqstart_py)
        self._max_seqlen = max_seqlen
        self._min_seqlen = min_seqlen

    @classmethod
    def from_seqlens(
        cls,
        seqlens: Iterable[int] | Tensor,
        *,
        device: torch.device | str | None = None,
        max_seqlen: int | None = None,
    ) -> _SeqLenInfo:
        """Divide a dimension of length sum(seqlens).

        seqlens: Python ints, or an int32 or int64 tensor [n].
        device: where kernels read them; default: the tensor's own, or that of this build's kernels.
        max_seqlen: what later changes in place may grow to; default: the greatest length, which
            stays unknown if the lengths lie on another device.
        Raises: ValueError if a length is negative or above `max_seqlen`; TypeError if one is no
        int.
        """
        lengths = seqlens if isinstance(seqlens, Tensor) else list(seqlens)
        integers, most, least = checked_lengths(lengths, device, max_seqlen)
        return cls(integers.starts(), most, least)

    @property
    def seqstart(self) -> Tensor:
        """Where each sequence begins, int32 [n + 1]; the last entry is where the last one ends."""
        return self._starts.tensor

    @property
    def seqstart_py(self) -> list[int]:
        """`seqstart` as a list; reads the device if the lengths came as a tensor."""
        return self._starts.tolist()

    @property
    def max_seqlen(self) -> int:
        """The length no sequence exceeds; -1 without sequences. Reads the device if not known."""
        told = self._max_seqlen
        if told is not None and not self.are_known:
            return told
        longest = max(self.lengths(), default=-1)
        return longest if told is None else max(longest, told)

    @property
    def min_seqlen(self) -> int:
        """The length of the shortest sequence; -1 without. Reads the device if not known."""
        if self._min_seqlen is None or self.are_known:
            return min(self.lengths(), default=-1)
        return self._min_seqlen

    @property
    def capacity(self) -> int:
        """The length no sequence exceeds; 0 if that is not known without reading a device."""
        return 0 if self._max_seqlen is None else max(self._max_seqlen, 0)

    @property
    def fixed_size(self) -> int | None:
        """The length of the dimension if Python gave it and nobody changed it; else None."""
        return self._starts.fixed_last

    @property
    def count(self) -> int:
        """How many sequences there are."""
        return self.seqstart.shape[0] - 1

    @property
    def are_known(self) -> bool:
        """Whether `lengths` and `intervals` cost no wait for a device."""
        return self._starts.are_known

    def intervals(self) -> Iterator[tuple[int, int]]:
        """Yield where each sequence begins and ends."""
        yield from pairwise(self.seqstart_py)

    def lengths(self) -> list[int]:
        """Return the length of each sequence."""
        return [end - start for start, end in self.intervals()]

    def to(self, device: torch.device | str) -> _SeqLenInfo:
        """Return the same division on `device`."""
        if self.seqstart.device == torch.device(device):
            return self
        return _SeqLenInfo(self._starts.to(device), self._max_seqlen, self._min_seqlen)

    def from_seqlens_inplace(self, seqlens: Iterable[int] | Tensor) -> None:
        """Change the lengths where kernels read them, so that a captured graph sees new ones.

        Raises: AssertionError if there are more or fewer than before, or one above `max_seqlen`.
        """
        lengths = seqlens if isinstance(seqlens, Tensor) else list(seqlens)
        integers, most, least = checked_lengths(lengths, self.seqstart.device, None)
        starts = integers.starts()
        check_update(starts, self.seqstart, most, self._max_seqlen)
        self._starts.copy_(starts)
        self._min_seqlen = least

    def split(self, x: Tensor, batch_sizes: Sequence[int] | None = None) -> list[Tensor]:
        """Cut [1, M, *] into tensors [batch_size, M_i, *], of `batch_size` equal sequences each.

        Raises: ValueError if `x` has another shape.
        """
        starts = self.seqstart_py
        if x.shape[0] != 1 or x.shape[1] != starts[-1]:
            raise ValueError(
                f"attn_bias.split: expected a tensor [1, {starts[-1]}, *], got {list(x.shape)}"
            )
        sizes = [1] * self.count if batch_sizes is None else list(batch_sizes)
        firsts = [0, *accumulate(sizes)]
        chunks = [starts[end] - starts[first] for first, end in pairwise(firsts)]
        return [
            part.reshape(size, part.shape[1] // max(size, 1), *x.shape[2:])
            for size, part in zip(sizes, x.split(chunks, dim=1), strict=True)
        ]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.lengths()}, device={self.seqstart.device})"


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

    @property
    def seqlen_py(self) -> list[int]:
        """`seqlen` as a list; reads the device if the lengths came as a tensor."""
        return self._lengths.tolist()

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

        Raises: AssertionError if a length is above `padding`; ValueError if one is negative.
        """
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
