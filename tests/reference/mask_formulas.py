"""Masks from their formulas, one query and one key at a time.

i counts the queries of a sequence, j its keys; q and k are how many there are.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Rule = Callable[[int, int, int, int], bool]
"""Whether query i sees key j, of (i, j, q, k)."""


def every_key(i: int, j: int, q: int, k: int) -> bool:
    """Return true."""
    del i, j, q, k
    return True


def causal(i: int, j: int, q: int, k: int) -> bool:
    """Return j <= i."""
    del q, k
    return j <= i


def causal_from_bottom_right(i: int, j: int, q: int, k: int) -> bool:
    """Return j <= i + k - q."""
    return j <= i + k - q


def causal_window(window: int) -> Rule:
    """Return the rule i - window < j <= i."""
    return lambda i, j, q, k: i - window < j <= i  # noqa: ARG005  all rules take four


def causal_window_from_bottom_right(window: int) -> Rule:
    """Return the rule i + s - window < j <= i + s, with s = k - q."""
    return lambda i, j, q, k: i + k - q - window < j <= i + k - q


def window_from_bottom_right(left: int, right: int) -> Rule:
    """Return the rule i + s - left <= j <= i + s + right, with s = k - q."""
    return lambda i, j, q, k: i + k - q - left <= j <= i + k - q + right


def dense(rule: Rule, num_queries: int, num_keys: int) -> Tensor:
    """Return 0 where the rule lets a key be seen, else -infinity: [Mq, Mkv]."""
    return packed(rule, [num_queries], [range(num_keys)], num_keys)


def packed(
    rule: Rule, q_seqlen: Sequence[int], slots: Sequence[Sequence[int]], num_slots: int
) -> Tensor:
    """Return the same for packed queries, [sum of q_seqlen, num_slots].

    slots[b][j] is where key j of sequence b lies in memory; sequences may share slots.
    """
    mask = torch.full((sum(q_seqlen), num_slots), -torch.inf)
    for b, keys in enumerate(slots):
        first = sum(q_seqlen[:b])
        for i in range(q_seqlen[b]):
            for j, slot in enumerate(keys):
                if rule(i, j, q_seqlen[b], len(keys)):
                    mask[first + i, slot] = 0.0
    return mask


@dataclass(frozen=True)
class Batch:
    """The lengths of the sequences of one batch."""

    q_seqlen: list[int]
    kv_seqlen: list[int]

    @property
    def num_queries(self) -> int:
        """All queries."""
        return sum(self.q_seqlen)

    def packed_slots(self) -> list[range]:
        """Return the rows of each sequence's keys if they follow one another."""
        ends = [sum(self.kv_seqlen[: b + 1]) for b in range(len(self.kv_seqlen))]
        return [range(end - length, end) for end, length in zip(ends, self.kv_seqlen, strict=True)]

    def with_enough_keys(self) -> "Batch":
        """Return the same queries, with as many keys at least."""
        longer = [max(pair) for pair in zip(self.q_seqlen, self.kv_seqlen, strict=True)]
        return Batch(self.q_seqlen, longer)


def batches() -> list[Batch]:
    """Return batches with empty sequences, single tokens, more queries than keys, and any."""
    found = [
        Batch([3], [3]),
        Batch([0], [4]),
        Batch([4], [0]),
        Batch([0, 0], [0, 0]),
        Batch([1, 1, 1, 1], [7, 0, 1, 12]),
        Batch([5, 2, 7], [1, 9, 7]),
        Batch([2, 0, 3, 1], [4, 1, 0, 1]),
    ]
    draw = random.Random(20)  # noqa: S311  not for secrets
    for _ in range(8):
        count = draw.randint(1, 5)
        lengths = [[draw.choice([0, 1, draw.randint(0, 12)]) for _ in range(count)] for _ in "qk"]
        found.append(Batch(*lengths))
    return found
