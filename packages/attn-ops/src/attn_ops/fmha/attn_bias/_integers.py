"""The integers that describe a mask: tensors for kernels, lists for Python.

They come as Python sequences, or as int32 or int64 tensors. The latter are never copied to the
host unless someone asks: what Python knows of them then is only what it was told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import index
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from attn_ops import _native
from attn_ops.mask import UNBOUNDED

_HAS_CUDA_KERNELS: Final = _native.has_cuda()  # asked here, for Dynamo cannot trace the question

Lengths = Sequence[int] | Tensor
"""One length per sequence: Python ints, or an int32 or int64 tensor [n] on any device."""


def default_device() -> torch.device:
    """Return where masks made of Python lengths live: with the kernels of this build."""
    return torch.device("cuda" if _HAS_CUDA_KERNELS and torch.cuda.is_available() else "cpu")


class Integers:
    """An int32 tensor, and the same numbers as a list if Python knows them.

    The list holds only while the tensor is as it was when both were made: torch counts the changes
    in place. Numbers that came as a tensor are read anew each time.
    """

    def __init__(
        self, tensor: Tensor, known: list[int] | None = None, *, are_fixed: bool = True
    ) -> None:
        self.tensor = tensor
        self._known = known
        self._are_fixed = are_fixed
        self._changes = _count_changes(tensor)

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (self.tensor, self.known, self._are_fixed)

    @classmethod
    def of(cls, numbers: Lengths, device: torch.device | str | None = None) -> Integers:
        """Put `numbers` on `device`; an int32 tensor that is there already is kept as it is.

        Raises: ValueError if a tensor is not 1-D, or neither int32 nor int64, or one of Python's
        numbers does not fit int32; TypeError if it is no int.
        """
        if not isinstance(numbers, Tensor):
            known = _checked_ints(numbers)
            where = default_device() if device is None else device
            return cls(torch.tensor(known, dtype=torch.int32, device=where), known)
        if numbers.dim() != 1 or numbers.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                "attn_bias: expected lengths as Python ints or an int32 or int64 tensor [n], got "
                f"{numbers.dtype} {list(numbers.shape)}"
            )
        return cls(numbers.to(device=device, dtype=torch.int32))

    @property
    def known(self) -> list[int] | None:
        """The numbers as Python knows them; None if they came, or were changed, as a tensor."""
        if self._known is not None and not self._are_as_made():
            self._known = None
        return self._known

    @property
    def fixed_last(self) -> int | None:
        """The last of numbers that Python gave and nobody changed in place; else None."""
        known = self.known if self._are_fixed else None
        return known[-1] if known else None

    def _are_as_made(self) -> bool:
        if torch.compiler.is_compiling():
            return True  # Dynamo cannot trace the question
        if not self.tensor.is_inference():  # which count no changes
            return self.tensor._version == self._changes  # noqa: SLF001  torch has no public name
        return self.tensor.device.type != "cpu" or self.tensor.tolist() == self._known

    @property
    def are_known(self) -> bool:
        """Whether reading the numbers costs no wait for a device."""
        on_host = self.tensor.device.type == "cpu" and not torch.compiler.is_compiling()
        return self.known is not None or on_host

    def tolist(self) -> list[int]:
        """Return the numbers, waiting for the device if need be."""
        known = self.known
        return self.tensor.tolist() if known is None else known

    def told(self, numbers: Sequence[int]) -> Integers:
        """Return the same tensor, of which Python is told that it holds `numbers`."""
        return Integers(self.tensor, _checked_ints(numbers), are_fixed=False)

    def to(self, device: torch.device | str) -> Integers:
        """Return the same numbers on `device`."""
        known = self.known
        copy = None if known is None else list(known)
        return Integers(self.tensor.to(device), copy, are_fixed=self._are_fixed)

    def starts(self) -> Integers:
        """Return where sequences of these lengths begin if they follow one another, [n + 1]."""
        known = self.known
        if known is None:
            return Integers(pad(self.tensor.cumsum(0, dtype=torch.int32), (1, 0)))
        return Integers.of([0, *accumulate(known)], self.tensor.device)

    def copy_(self, numbers: Integers) -> None:
        """Overwrite the tensor and the list; from now on the numbers count as changeable."""
        self.tensor.copy_(numbers.tensor, non_blocking=True)
        self._known = None if numbers.known is None else list(numbers.known)
        self._are_fixed = False
        self._changes = _count_changes(self.tensor)


def as_integers(numbers: Tensor | Integers, known: list[int] | None) -> Integers:
    """Return `numbers` if they are Integers, shared with whoever holds them; else make some."""
    return numbers if isinstance(numbers, Integers) else Integers(numbers, known)


def _restored(tensor: Tensor, known: list[int] | None, are_fixed: bool) -> Integers:
    return Integers(tensor, known, are_fixed=are_fixed)


def _count_changes(tensor: Tensor) -> int:
    """Return how often `tensor` was changed in place; -1 where torch does not count."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return -1
    return tensor._version  # noqa: SLF001


def _checked_ints(numbers: Sequence[int]) -> list[int]:
    if torch.compiler.is_compiling():
        return list(numbers)
    for i, number in enumerate(numbers):
        if not hasattr(number, "__index__"):
            raise TypeError(f"attn_bias: expected lengths as Python ints, got {number!r} at {i}")
    known = [index(number) for number in numbers]
    for number in known:
        if not -(2**31) <= number < 2**31:
            raise ValueError(
                f"attn_bias: expected lengths and rows below 2**31 in all, got {number}; split the "
                "sequences over several calls"
            )
    return known


def check_is_int(who: str, name: str, value: object) -> None:
    """Raise TypeError unless `value`, the argument `name` of `who`, is an int, also NumPy's."""
    # Dynamo would not ask for an attribute of a symbolic int.
    if not isinstance(value, int) and not hasattr(value, "__index__"):
        raise TypeError(f"{who}: expected an int as {name}, got {value!r}")


def check_size(who: str, name: str, size: int, least: int = 1) -> None:
    """Check a number that a mask is made of, the argument `name` of `who`.

    Raises: TypeError if it is no int; ValueError if it is below `least`, or does not fit int64.
    """
    check_is_int(who, name, size)
    if not least <= size <= UNBOUNDED:
        bound = "" if size < least else " and below 2**63"
        raise ValueError(f"{who}: expected {name} of {least} or more{bound}, got {size}")


def checked_lengths(
    lengths: Iterable[int] | Tensor, device: torch.device | str | None, max_seqlen: int | None
) -> tuple[Integers, int | None, int | None]:
    """Return the lengths, the most they may grow to and the least; None where not known.

    Raises: ValueError if a length is negative or above `max_seqlen`, or that is negative; TypeError
    if they are no ints.
    """
    if not isinstance(lengths, Iterable):
        raise TypeError(
            "attn_bias: expected lengths as a list of Python ints or an int32 or int64 tensor [n], "
            f"got {lengths!r}"
        )
    if max_seqlen is not None:
        check_size("attn_bias", "max_seqlen", max_seqlen, 0)
    integers = Integers.of(lengths if isinstance(lengths, Tensor) else list(lengths), device)
    if not integers.are_known:
        return integers, max_seqlen, None
    known = integers.tolist()
    if not known:
        return integers, -1 if max_seqlen is None else max_seqlen, -1
    least, most = min(known), max(known)
    if least < 0:
        raise ValueError(f"attn_bias: expected lengths of 0 or more, got {known}")
    if max_seqlen is not None and most > max_seqlen:
        raise ValueError(f"attn_bias: expected lengths of at most {max_seqlen=}, got {known}")
    return integers, most if max_seqlen is None else max_seqlen, least


def check_update(new: Integers, old: Tensor, most: int | None, capacity: int | None) -> None:
    """Check what is to replace `old` in place; `most` is the greatest new length, if known.

    Raises: AssertionError if the count differs, or `most` is above `capacity`.
    """
    if new.tensor.shape != old.shape:
        raise AssertionError(
            f"attn_bias: expected as many lengths as before, {old.shape[0]}, to change them in "
            f"place, got {new.tensor.shape[0]}; make a new mask"
        )
    if most is not None and capacity is not None and most > capacity:
        raise AssertionError(
            f"attn_bias: expected lengths of at most {capacity}, as before, to change them in "
            f"place, got {new.tolist()}; make the mask with a larger maximum"
        )
