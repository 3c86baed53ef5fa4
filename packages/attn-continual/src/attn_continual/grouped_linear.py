"""`GroupedLinear`: a projection for each group of features."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class GroupedLinear(nn.Module):
    """Project each group of features by itself.

    Shapes: x [..., groups * width] to [..., groups * out_width].
    Parameters: `weight` [groups, width, out_width], drawn as `torch.nn.Linear` does for the width
        of a group, and `bias` [groups, out_width], zeros.
    """

    def __init__(self, in_features: int, out_features: int, n_groups: int) -> None:
        super().__init__()
        self.n_groups = n_groups
        check_multiple("GroupedLinear", "in_features", in_features, "n_groups", n_groups)
        check_multiple("GroupedLinear", "out_features", out_features, "n_groups", n_groups)
        width, out_width = in_features // n_groups, out_features // n_groups
        self.weight = nn.Parameter(torch.empty(n_groups, width, out_width))
        self.bias = nn.Parameter(torch.empty(n_groups, out_width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight anew, and set the bias to zeros."""
        bound = 1 / math.sqrt(max(self.weight.shape[1], 1))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the projected features."""
        groups = x.unflatten(-1, (self.n_groups, -1))
        return (torch.einsum("...gi,gio->...go", groups, self.weight) + self.bias).flatten(-2)


def check_multiple(who: str, name: str, number: int, of: str, divisor: int) -> None:
    """Raise ValueError unless `number`, called `name`, is a multiple of `divisor`."""
    if divisor < 1 or number % divisor != 0:
        raise ValueError(
            f"{who}: expected {name} to be a multiple of {of}, got {number} and {divisor}"
        )
