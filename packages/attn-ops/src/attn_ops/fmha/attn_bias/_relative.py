"""Biases of the distance between query and key, computed in the kernel from a few numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attn_ops.fmha.attn_bias import _bands
from attn_ops.fmha.attn_bias._base import RelativeBias
from attn_ops.fmha.attn_bias._integers import check_size
from attn_ops.mask import MaskSpec, Relative

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class AlibiBias(RelativeBias):
    """Lower each score by slope * distance: attention with linear biases.

    The distance of query i and key j is |j - (i + Mkv - Mq)| by itself, and counts from the mask's
    diagonal after `mask.add_bias(AlibiBias(slopes))`. Differentiable in `slopes`.

    The mask holds the tensor, no parameter: in a module keep the Parameter on the module itself,
    and make the mask of it in `forward`, or neither optimizer nor `state_dict` will find it.

    Shapes: slopes [Hq], of query's dtype or float32.
    Raises: ValueError if `slopes` is no floating-point tensor [Hq].
    Source: Press et al. 2022, arXiv:2108.12409.

    >>> AlibiBias(torch.tensor([1.0])).materialize((1, 2, 3))
    tensor([[[-1.,  0., -1.],
             [-2., -1.,  0.]]])
    """

    slopes: Tensor

    def __post_init__(self) -> None:
        _check_parameter(self, "slopes", self.slopes, "[Hq]", 1)

    @classmethod
    def for_heads(
        cls,
        heads: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> AlibiBias:
        """Return the paper's slopes: 2^(-8/n), 2^(-16/n), … for n heads, a power of 2.

        For other n they are those of the power of 2 below, and then every other one of the next.
        Raises: ValueError if `heads` is less than 1.

        >>> AlibiBias.for_heads(4).slopes
        tensor([0.2500, 0.0625, 0.0156, 0.0039])
        """
        check_size("AlibiBias.for_heads", "heads", heads)
        below = 2 ** int(math.log2(heads))
        slopes = [2.0 ** (-8.0 * (i + 1) / below) for i in range(below)]
        slopes += [2.0 ** (-4.0 * (2 * i + 1) / below) for i in range(heads - below)]
        return cls(torch.tensor(slopes, dtype=dtype, device=device))

    def to(self, device: torch.device | str) -> Self:
        """Return the same slopes on `device`."""
        return replace(self, slopes=self.slopes.to(device))

    def mask_spec(self) -> MaskSpec:
        """Return the parts that kernels evaluate."""
        return MaskSpec(_bands.EVERY_KEY, relative=Relative(slopes=self.slopes))


@dataclass(frozen=True, eq=False)
class RelativePositionBias(RelativeBias):
    """Add a learned number for each distance, up to R keys either side, to each score.

    Key j adds table[h, clamp(j - (i + Mkv - Mq), -R, R) + R] to query i by itself; the distance
    counts from the mask's diagonal after `mask.add_bias(RelativePositionBias(table))`.
    Differentiable in `table`.

    The mask holds the tensor, no parameter: in a module keep the Parameter on the module itself,
    and make the mask of it in `forward`, or neither optimizer nor `state_dict` will find it.

    Shapes: table [Hq, 2 R + 1], of query's dtype or float32; column R is the diagonal.
    Raises: ValueError if `table` is no floating-point tensor [Hq, 2 R + 1].
    Source: Shaw et al. 2018, arXiv:1803.02155; Raffel et al. 2020, arXiv:1910.10683, 2.1.

    >>> RelativePositionBias(torch.tensor([[-1.0, 0.0, 1.0]])).materialize((1, 2, 3))
    tensor([[[-1.,  0.,  1.],
             [-1., -1.,  0.]]])
    """

    table: Tensor

    def __post_init__(self) -> None:
        _check_parameter(self, "table", self.table, "[Hq, 2 R + 1]", 2)
        if self.table.shape[1] % 2 == 0:
            raise ValueError(
                "RelativePositionBias: expected a table [Hq, 2 R + 1], got "
                f"{list(self.table.shape)}; the distances are -R to R"
            )

    def to(self, device: torch.device | str) -> Self:
        """Return the same table on `device`."""
        return replace(self, table=self.table.to(device))

    def mask_spec(self) -> MaskSpec:
        """Return the parts that kernels evaluate."""
        return MaskSpec(_bands.EVERY_KEY, relative=Relative(table=self.table))


def _check_parameter(who: object, name: str, tensor: object, layout: str, axes: int) -> None:
    if isinstance(tensor, Tensor) and tensor.dim() == axes and tensor.is_floating_point():
        return
    got = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor)
    raise ValueError(
        f"{type(who).__name__}: expected {name}, a floating-point tensor {layout}, got {got}"
    )
