"""`Linear` with RETURNN's layout and initialisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attn_continual._step_checks import check_dtype


class Linear(nn.Module):
    """Compute x weight + bias.

    Shapes: x [..., in] to [..., out]. Parameters: `weight` [in, out] and `bias` [out] or None.
    Initialisation: Glorot uniform times sqrt(scale), bias 0.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        with_bias: bool = True,
        scale: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = (in_features, out_features)
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = (
            nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
            if with_bias
            else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight and set the bias to 0."""
        glorot_uniform(self.weight, self.scale)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the projected features.

        Raises: ValueError for another number of features, or another dtype than the weight's.
        """
        features = self.weight.shape[0]
        if x.shape[-1] != features:
            raise ValueError(f"projection: expected {features} features, got {list(x.shape)}")
        check_dtype("projection", x, self.weight)
        return nn.functional.linear(x, self.weight.mT, self.bias)

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}, with_bias={self.bias is not None}"


def glorot_uniform(weight: Tensor, scale: float = 1.0) -> None:
    """Fill [fan_in, fan_out] with uniform numbers of variance 2 scale / (fan_in + fan_out)."""
    bound = math.sqrt(6 * scale / max(sum(weight.shape), 1))
    nn.init.uniform_(weight, -bound, bound)
