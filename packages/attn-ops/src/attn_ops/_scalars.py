"""Checks the numbers that `attn_ops.array` hands on, by the names that users gave them."""

from __future__ import annotations

import math
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


def check_scalars(function: str, options: Mapping[str, object]) -> None:
    """Check those of `options`, arguments of a native function by name, that are numbers.

    Raises: TypeError if one is no number, or no integer where one is needed; ValueError if it is
    out of range, or the scale not finite. `function` speaks.
    """
    for name, (users_name, bounds) in _INTEGERS.items():
        if name in options:
            _check_integer(function, users_name, options[name], *bounds)
    if "dropout_p" in options:
        _check_real(function, "dropout_p", options["dropout_p"])
    scale = options.get("scale")
    if scale is not None and not math.isfinite(_check_real(function, "scale", scale)):
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


def _check_real(function: str, name: str, value: object) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(
            f"{function}: expected a number as {name}, got {value!r} of {type(value)}; pass a float"
        )
    return float(value)
