"""The integers that describe a mask: tensors for kernels, lists for Python.

They come as Python sequences, or as int32 or int64 tensors. The latter are never copied to the
host unless someone asks: what Python knows of them then is only what it was told.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from attn_ops import _native

_HAS_CUDA_KERNELS: Final = _native.has_cuda()  # asked here, for Dynamo cannot trace the question

Lengths = Sequence[int] | Tensor
"""One length per sequence: Python ints, or an int32 or int64 tensor [n] on any device."""


def default_device() -> torch.device:
    """Return where masks made of Python lengths live: with the kernels of this build."""
    return torch.device("cuda" if _HAS_CUDA_KERNELS and torch.cuda.is_available() else "cpu")


class Integers:
    """An int32 tensor, and the same numbers as a list if Python knows them.

    Numbers that came as a tensor are read anew each time, so that changes in place are seen.
    """

    def __init__(self, tensor: Tensor, known: list[int] | None = None) -> None:
        self.tensor = tensor
        self.known = known

    @classmethod
    def of(cls, numbers: Lengths, device: torch.device | str | None = None) -> Integers:
        """Put `numbers` on `device`; an int32 tensor that is there already is kept as it is.

        Raises: ValueError if a tensor is not 1-D, or neither int32 nor int64.
        """
        if not isinstance(numbers, Tensor):
            known = list(numbers)
            where = default_device() if device is None else device
            return cls(torch.tensor(known, dtype=torch.int32, device=where), known)
        if numbers.dim() != 1 or numbers.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                "attn_bias: expected lengths as Python ints or an int32 or int64 tensor [n], got "
                f"{numbers.dtype} {list(numbers.shape)}"
            )
        return cls(numbers.to(device=device, dtype=torch.int32))

    @property
    def are_known(self) -> bool:
        """Whether reading the numbers costs no wait for a device."""
        on_host = self.tensor.device.type == "cpu" and not torch.compiler.is_compiling()
        return self.known is not None or on_host

    def tolist(self) -> list[int]:
        """Return the numbers, waiting for the device if need be."""
        return self.tensor.tolist() if self.known is None else self.known

    def to(self, device: torch.device | str) -> Integers:
        """Return the same numbers on `device`."""
        known = None if self.known is None else list(self.known)
        return Integers(self.tensor.to(device), known)

    def starts(self) -> Integers:
        """Return where sequences of these lengths begin if they follow one another, [n + 1]."""
        if self.known is None:
            return Integers(pad(self.tensor.cumsum(0, dtype=torch.int32), (1, 0)))
        return Integers.of([0, *accumulate(self.known)], self.tensor.device)

    def copy_(self, numbers: Integers) -> None:
        """Overwrite the tensor, and the list in place where both are lists."""
        self.tensor.copy_(numbers.tensor, non_blocking=True)
        if self.known is not None and numbers.known is not None:
            self.known[:] = numbers.known
        else:
            self.known = None


def checked_lengths(
    lengths: Lengths, device: torch.device | str | None, max_seqlen: int | None
) -> tuple[Integers, int | None, int | None]:
    """Return the lengths, the most they may grow to and the least; None where not known.

    Raises: ValueError if a length is negative or above `max_seqlen`.
    """
    integers = Integers.of(lengths, device)
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
