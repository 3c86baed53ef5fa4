"""Which axis of a sequence is the stream, which is time and which holds the features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SequenceLayout:
    """The caller's layout of sequences: [N, T, E], [T, N, E] or [N, E, T].

    batch_first: streams come first; else time does.
    embed_dim_second: features come before time.
    Raises: ValueError for features before time without streams first.
    """

    batch_first: bool = True
    embed_dim_second: bool = False

    def __post_init__(self) -> None:
        """Check that such a layout exists."""
        if self.embed_dim_second and not self.batch_first:
            raise ValueError(
                "layout: expected batch_first with embed_dim_second, got batch_first=False"
            )

    @property
    def time_axis(self) -> int:
        """The axis of time in sequences."""
        return 2 if self.embed_dim_second else 1 if self.batch_first else 0

    def to_rows(self, x: Tensor) -> Tensor:
        """View a sequence as [N, T, E].

        Raises: ValueError if it has other than 3 axes.
        """
        if x.dim() != 3:
            raise ValueError(
                "sequence: expected 3 axes, streams, time and features, got "
                f"{list(x.shape)}; unsqueeze a single stream, and give steps to forward_step"
            )
        return self.from_rows(x)  # each of the layouts is its own inverse

    def from_rows(self, rows: Tensor) -> Tensor:
        """View [N, T, E] in the caller's layout."""
        if self.embed_dim_second:
            return rows.transpose(1, 2)
        return rows if self.batch_first else rows.transpose(0, 1)

    def from_chunk(self, rows: Tensor) -> Tensor:
        """View the outputs of T steps: [N, T, E] as `from_rows` does, and windows [N, T, L, E].

        Windows become [N, T, L, E], [T, L, N, E] or [N, E, T, L].
        """
        if self.embed_dim_second:
            return rows.movedim(-1, 1)
        return rows if self.batch_first else rows.movedim(0, -2)

    def from_step(self, rows: Tensor) -> Tensor:
        """View the outputs of one step: [N, 1, E] as [N, E], and a window [N, 1, L, E] as rows."""
        row = rows.select(1, 0)
        return row if row.dim() == 2 else self.from_rows(row)


def step_rows(x: Tensor) -> Tensor:
    """View a step's input [N, E] as the rows [N, 1, E] of a chunk.

    Raises: ValueError if it has other than 2 axes.
    """
    if x.dim() != 2:
        raise ValueError(
            f"step: expected 2 axes, streams and features, got {list(x.shape)}; forward_steps "
            "takes sequences"
        )
    return x.unsqueeze(1)
