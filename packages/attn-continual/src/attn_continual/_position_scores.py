"""Products of rows with the table row of each distance, and their gradients, without a gather.

One matrix product gives every row against all the table rows that any of them needs. What belongs
to a row's first neighbour lies one column further left from row to row, so the result is a view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self


class DistanceProduct(NamedTuple):
    """For each row r and column c: x_r . table[clamp(first + c - r, 0, Z - 1)]."""

    flat: Tensor
    """[H or 1, B R or H B R, K]: the rows x, scaled; 1 for a table that all heads share."""
    table: Tensor
    """[H or 1, rows, K]: the part of the table that is read."""
    begin: int
    """Where it begins in the table."""
    left: int
    """Columns of `by_distance` that repeat the first row of that part."""
    by_distance: Tensor
    """[H, B, R, R + columns - 1]: each row with every distance."""
    scores: Tensor
    """[B, H, R, columns]: a view of it, each element its own."""

    @classmethod
    def compute(cls, rows: Tensor, table: Tensor, first: int, columns: int, scale: float) -> Self:
        """Multiply rows [B, R, H, K] with a table [H or 1, Z, K], in the table's dtype."""
        batch, num_rows, heads, features = rows.shape
        by_head = rows.to(table.dtype).permute(2, 0, 1, 3)
        flat = by_head.reshape(table.shape[0], -1, features) * scale
        lowest, width = first - (num_rows - 1), num_rows + columns - 1
        last = table.shape[1] - 1
        begin, end = _clamp(lowest, last), _clamp(lowest + width - 1, last) + 1
        part = table[:, begin:end]
        left = min(max(begin - lowest, 0), width - 1)
        product = _repeat_edges(flat @ part.mT, left, width - (end - begin) - left)
        by_distance = product.view(heads, batch, num_rows, width)
        return cls(flat, part, begin, left, by_distance, _diagonals(by_distance, columns))

    def add_gradients(
        self, grad: Tensor, grad_rows: Tensor, grad_table: Tensor, scale: float
    ) -> None:
        """Add to the gradients of rows [B, R, H, K] and of the whole table; overwrites the product.

        Shapes: grad [B, H, R, columns], that of the scores.
        """
        heads, batch, num_rows, width = self.by_distance.shape
        _diagonals(self.by_distance.zero_(), grad.shape[-1]).copy_(grad)
        flat = self.by_distance.view(self.flat.shape[0], -1, width)
        end = self.left + self.table.shape[1]
        if self.left > 0:
            flat[..., self.left] += flat[..., : self.left].sum(-1)
        if end < width:
            flat[..., end - 1] += flat[..., end:].sum(-1)
        flat = flat[..., self.left : end]
        by_row = (flat @ self.table).view(heads, batch, num_rows, -1)
        grad_rows.add_(by_row.permute(1, 2, 0, 3), alpha=scale)
        grad_table[:, self.begin :][:, : self.table.shape[1]].baddbmm_(flat.mT, self.flat)


def _clamp(row: int, last: int) -> int:
    return min(max(row, 0), last)


def _repeat_edges(x: Tensor, left: int, right: int) -> Tensor:
    """Repeat the first and the last column of [..., columns] that often."""
    if left == 0 and right == 0:
        return x
    before = x[..., :1].expand(*x.shape[:-1], left)
    return torch.cat([before, x, x[..., -1:].expand(*x.shape[:-1], right)], dim=-1)


def _diagonals(by_distance: Tensor, columns: int) -> Tensor:
    """View [H, B, R, R + columns - 1] as [B, H, R, columns]: (r, c) is column R - 1 - r + c."""
    heads, batch, num_rows, width = by_distance.shape
    return by_distance.as_strided(
        (batch, heads, num_rows, columns),
        (num_rows * width, batch * num_rows * width, width - 1, 1),
        by_distance.storage_offset() + num_rows - 1,
    )
