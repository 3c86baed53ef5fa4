"""Which rows of a table relative positions read, by pair, or by distance where that is enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor


def table_rows(positions: Tensor, num_rows: int) -> Tensor:
    """Return the rows of relative positions, any integers: int64, of the same shape.

    Row num_rows // 2 is that of the position 0, the first and the last stand for all beyond them.
    """
    middle = num_rows // 2
    # Clamped before the middle is added: the largest integers stand for "far away".
    return positions.to(torch.int64).clamp(-middle, num_rows - 1 - middle).add_(middle)


class DistanceRows(NamedTuple):
    """Which row of tables each distance of a key from a query reads, ascending.

    The first and the last stand for all distances beyond them.
    """

    rows: Tensor
    """int32 [distances]; of as many queries as keys there are as many on both sides of 0."""
    zero: int
    """Where the distance 0 is."""

    @classmethod
    def of(cls, positions: Tensor, num_rows: int) -> DistanceRows | None:
        """Return those of positions [n or 1, q, k, 1], or None if pairs count, or coordinates.

        num_rows: of the tables; see `table_rows`.
        """
        samples, queries, keys, coordinates = positions.shape
        if samples * queries * keys == 0 or coordinates != 1:
            return None
        same = torch.equal(positions[:, 1:, 1:], positions[:, :-1, :-1])
        if not (same and torch.equal(positions[1:], positions[:-1])):
            return None
        by_distance = torch.cat([positions[0, :, 0, 0].flip(0), positions[0, 0, 1:, 0]])
        rows = table_rows(by_distance, num_rows)
        changes = (rows[1:] != rows[:-1]).nonzero().flatten().tolist()
        zero = queries - 1
        reach = max([abs(index - zero) + 1 for index in changes[:1] + changes[-1:]], default=0)
        first = max(zero - reach, 0)
        return cls(rows[first : zero + reach + 1].to(torch.int32), zero - first)
