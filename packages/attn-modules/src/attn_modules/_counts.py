"""Checks that what a constructor takes for a count is one."""

from __future__ import annotations

from numbers import Integral


def check_counts(who: str, **counts: object) -> None:
    """Raise ValueError unless each is an integer of 1 or more."""
    for name, count in counts.items():
        if not isinstance(count, Integral) or int(count) < 1:
            raise ValueError(f"{who}: expected {name}, an int of 1 or more, got {count!r}")
