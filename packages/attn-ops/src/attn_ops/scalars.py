"""Checks the numbers among arguments, by the names that users gave them; needs no torch."""

from __future__ import annotations

import math
import sys
from numbers import Integral, Real
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# What each integer of a native call is to its user, and where it fits; what else it may not be,
# the core says.
_INT32, _INT64, _UINT64 = (-(2**31), 2**31), (-(2**63), 2**63), (0, 2**64)
_INTEGERS: Final = {
    "band_left": ("band.left", _INT64),
    "band_right": ("band.right", _INT64),
    "band_anchor": ("band.anchor", _INT32),
    "dropout_seed": ("dropout_seed", _UINT64),
    "dropout_offset": ("dropout_offset", _UINT64),
    "num_threads": ("num_threads", _INT32),
}


def plain_number(who: str, expected: str, value: object) -> float:
    """Return a number as Python's own, which operators take; NumPy's are converted.

    An int beyond all floats becomes infinite, and is refused like 1e400 where that is.
    Not True, an int to Python alone, nor a tensor, whose gradient would be lost without a word.
    Raises: TypeError if it is no number; `who` speaks, of what is `expected`.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, float) or abs(value) <= sys.float_info.max:
            return value
        return math.inf if value > 0 else -math.inf
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    is_tensor = hasattr(value, "requires_grad")  # torch may not be there to ask
    advice = "; pass its float(), which has no gradient" if is_tensor else ""
    raise TypeError(f"{who}: expected {expected}, got {value!r:.60} of {type(value)}{advice}")


def check_counts(who: str, least: int = 1, /, **counts: object) -> None:
    """Raise ValueError unless each of the counts, by its name, is an integer of `least` or more."""
    for name, count in counts.items():
        if not isinstance(count, Integral) or int(count) < least:
            raise ValueError(f"{who}: expected {name}, an int of {least} or more, got {count!r}")


def check_probability(who: str, name: str, p: float) -> None:
    """Raise ValueError unless `p` is in [0, 1]."""
    if not 0 <= p <= 1:
        raise ValueError(f"{who}: expected {name}, a probability in [0, 1], got {p}")


def check_scalars(function: str, options: Mapping[str, object]) -> None:
    """Check those of `options`, arguments of a native function by name, that are numbers.

    Raises: TypeError if one is no number, or no integer where one is needed; ValueError if it is
    out of range, or the scale not finite. `function` speaks.
    """
    for name, (users_name, bounds) in _INTEGERS.items():
        if name in options:
            _check_integer(function, users_name, options[name], *bounds)
    if "dropout_p" in options:
        plain_number(function, "a number as dropout_p", options["dropout_p"])
    scale = options.get("scale")
    if scale is None:
        return
    if not math.isfinite(plain_number(function, "a number or None as scale", scale)):
        raise ValueError(f"{function}: scale must be finite, or None for the default, got {scale}")


def _check_integer(function: str, name: str, value: object, least: int, end: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        advice = ", such as array.ANCHOR_BOTTOM_RIGHT" if name == "band.anchor" else ""
        raise TypeError(
            f"{function}: expected an integer as {name}{advice}, got {value!r} of {type(value)}"
        )
    if not least <= int(value) < end:
        raise ValueError(
            f"{function}: expected {name} of {least} or more and below {end}, got {value}"
        )
