"""Where the sequences of one packed dimension lie that follow one another.

The names and fields are those of `xformers.ops.fmha.attn_bias`, which users of masks read.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attn_ops.fmha.attn_bias._integers import (
    Integers,
    as_integers,
    check_update,
    checked_lengths,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class _SeqLenInfo:
    """The division of a dimension into sequences that follow one another.

    Its fields may be set, as decoding loops do that were written for xFormers: kernels read the
    tensors, and Python believes what it is told about them.

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
        integers, most, least = checked_lengths(seqlens, device, max_seqlen)
        return cls(integers.starts(), most, least)

    @property
    def seqstart(self) -> Tensor:
        """Where each sequence begins, int32 [n + 1]; the last entry is where the last one ends."""
        return self._starts.tensor

    @seqstart.setter
    def seqstart(self, starts: Tensor) -> None:
        self._starts = Integers.of(starts)
        self._max_seqlen = self._min_seqlen = None

    @property
    def seqstart_py(self) -> list[int]:
        """`seqstart` as a list; reads the device if the lengths came as a tensor."""
        return self._starts.tolist()

    @seqstart_py.setter
    def seqstart_py(self, starts: list[int]) -> None:
        self._starts = self._starts.told(starts)

    @property
    def max_seqlen(self) -> int:
        """The length no sequence exceeds; -1 without sequences. Reads the device if not known."""
        told = self._max_seqlen
        if told is not None and not self.are_known:
            return told
        longest = max(self.lengths(), default=-1)
        return longest if told is None else max(longest, told)

    @max_seqlen.setter
    def max_seqlen(self, most: int) -> None:
        self._max_seqlen = most

    @property
    def min_seqlen(self) -> int:
        """The length of the shortest sequence; -1 without. Reads the device if not known."""
        if self._min_seqlen is None or self.are_known:
            return min(self.lengths(), default=-1)
        return self._min_seqlen

    @min_seqlen.setter
    def min_seqlen(self, least: int) -> None:
        self._min_seqlen = least

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
        integers, most, least = checked_lengths(seqlens, self.seqstart.device, None)
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
