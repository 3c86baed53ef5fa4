"""A scrambler of integers: random numbers that depend on what they are for, and on a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

_LOW_32_BITS: Final = 2**32 - 1


def scramble(x: Tensor) -> Tensor:
    """Map numbers below 2^32 onto such numbers, int64, one to one and as if at random.

    The multipliers are below 2^31, so that no product exceeds an int64.
    Source: Wellons, Prospecting for Hash Functions, github.com/skeeto/hash-prospector.
    """
    x = x & _LOW_32_BITS
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _LOW_32_BITS
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _LOW_32_BITS
    return x ^ (x >> 15)
