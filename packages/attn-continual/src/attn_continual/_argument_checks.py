"""Checks of numbers that layers are made with."""

from __future__ import annotations


def check_probability(who: str, name: str, p: float) -> None:
    """Raise ValueError unless `p` is a probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"{who}: expected {name}, a probability in [0, 1], got {p}")


def check_at_least(who: str, least: int, **counts: int) -> None:
    """Raise ValueError if one of the counts is less than `least`."""
    for name, count in counts.items():
        if count < least:
            raise ValueError(f"{who}: expected {name} of {least} or more, got {count}")
