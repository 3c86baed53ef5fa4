"""Sequences in the caller's layout, any batch axes and any axis of time, as rows [B, T, F]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from attn_continual.returnn.dim import Dim

INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Sequences:
    """One tensor of sequences, which `restore` gives the caller's layout back."""

    rows: Tensor
    """[B, T, F]"""
    keep: Tensor | None
    """bool [B, T]: False is padding"""
    batch: tuple[int, ...]
    """The sizes of the batch axes; B is their product."""
    axis: int
    """The axis of time in the caller's layout, negative."""

    @classmethod
    def read(
        cls,
        who: str,
        source: Tensor,
        axis: int | Dim,
        features: int,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Sequences:
        """View a source whose last axis is that of features.

        Shapes: source [*batch, T, features], with T at `axis`; lengths int [*batch], how many rows
            of each count; mask bool [*batch, T], True keeps a row; both broadcast.
        What is not kept counts as 0, so that NaN there reaches no result and no gradient.
        Raises: ValueError if they do not fit; TypeError if the axis is a `Dim`.
        """
        axis = int_axis(who, axis)
        axis = axis - source.dim() if axis >= 0 else axis
        if not -source.dim() <= axis < -1 or source.shape[-1] != features:
            raise ValueError(
                f"{who}: expected source [..., {features}], features last, and axis, another one, "
                f"got {list(source.shape)} and axis={axis}"
            )
        source = source.movedim(axis, -2)
        batch = tuple(source.shape[:-2])
        keep = kept_rows(who, source.shape[-2], batch, lengths, mask)
        rows = source.reshape(math.prod(batch), *source.shape[-2:])
        if keep is not None:
            rows = rows.masked_fill(~keep[..., None], 0.0)
        return cls(rows, keep, batch, axis)

    def restore(self, rows: Tensor) -> Tensor:
        """Return results [B, T, F'] in the caller's layout, 0 where there is padding."""
        if self.keep is not None:
            rows = rows.masked_fill(~self.keep[..., None], 0.0)
        return rows.reshape(*self.batch, *rows.shape[1:]).movedim(-2, self.axis)


def int_axis(who: str, axis: int | Dim) -> int:
    """Return the axis of a torch tensor.

    Raises: TypeError if it is a `Dim`.
    """
    if not isinstance(axis, int):
        raise TypeError(
            f"{who}: expected axis, an int, with a torch tensor, got {axis}; tag the tensor"
        )
    return axis


def kept_rows(
    who: str,
    num_rows: int,
    batch: tuple[int, ...],
    lengths: Tensor | None,
    mask: Tensor | None,
) -> Tensor | None:
    """Return which rows both lengths [*batch] and mask [*batch, T] keep: bool [B, T], or None.

    Raises: ValueError if they are not int and bool, or do not broadcast.
    """
    keep = None
    if mask is not None:
        check_fits(who, "mask, bool", mask, (*batch, num_rows), (torch.bool,))
        keep = mask.expand(*batch, num_rows)
    if lengths is not None:
        check_fits(who, "lengths, int", lengths, batch, INTEGERS)
        rows = torch.arange(num_rows, device=lengths.device)
        within = (rows < lengths[..., None]).expand(*batch, num_rows)
        keep = within if keep is None else keep & within
    return None if keep is None else keep.reshape(math.prod(batch), num_rows)


def check_fits(
    who: str, what: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]
) -> None:
    """Raise ValueError unless a tensor is of one of the dtypes and broadcasts to the shape."""
    sizes = zip(reversed(tensor.shape), reversed(shape), strict=False)
    fits = tensor.dim() <= len(shape) and all(n == 1 or n == m for n, m in sizes)  # noqa: PLR1714  sizes of graphs
    if tensor.dtype not in dtypes or not fits:
        raise ValueError(
            f"{who}: expected {what}, to broadcast to {list(shape)}, got {tensor.dtype} "
            f"{list(tensor.shape)}"
        )
