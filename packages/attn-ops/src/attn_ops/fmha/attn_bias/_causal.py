"""Masks of a band around the diagonal; they serve every batch and length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from attn_ops.fmha.attn_bias import _bands
from attn_ops.fmha.attn_bias._base import AttentionBias, BiasedMask, RelativeBias
from attn_ops.mask import MaskSpec

if TYPE_CHECKING:
    from typing_extensions import Self

_CAUSAL: Final = MaskSpec(_bands.CAUSAL)
_CAUSAL_FROM_BOTTOM_RIGHT: Final = MaskSpec(_bands.CAUSAL_FROM_BOTTOM_RIGHT)


@dataclass(frozen=True)
class LocalAttentionFromBottomRightMask(AttentionBias):
    """Let query i see the keys i + s - window_left <= j <= i + s + window_right; s = Mkv - Mq.

    >>> bias = LocalAttentionFromBottomRightMask(window_left=1, window_right=2)
    >>> bias.materialize(shape=(4, 5)).exp()
    tensor([[1., 1., 1., 1., 0.],
            [0., 1., 1., 1., 1.],
            [0., 0., 1., 1., 1.],
            [0., 0., 0., 1., 1.]])

    Raises: TypeError if a window is no int; ValueError if one is negative.
    """

    window_left: int
    window_right: int

    def __post_init__(self) -> None:
        _bands.check_sides(self, self.window_left, self.window_right)

    def mask_spec(self) -> MaskSpec:
        """Return the parts that kernels evaluate."""
        return MaskSpec(_bands.window_from_bottom_right(self.window_left, self.window_right))


@dataclass(frozen=True, init=False)
class LowerTriangularMask(AttentionBias):
    """Let query i see the keys j <= i: causal, aligned at the first query and the first key.

    See `LowerTriangularFromBottomRightMask` for fewer queries than keys.

    >>> LowerTriangularMask().materialize((2, 4)).exp()
    tensor([[1., 0., 0., 0.],
            [1., 1., 0., 0.]])
    """

    def __init__(
        self, device: torch.device | str | None = None, *, _subtensor: Tensor | None = None
    ) -> None:
        del device, _subtensor  # xFormers' arguments; the mask serves every device

    def add_bias(self, bias: Tensor | RelativeBias) -> AttentionBias:
        """Return this mask with a bias added: a tensor's is a `LowerTriangularMaskWithTensorBias`.

        See `AttentionBias.add_bias`.
        """
        if isinstance(bias, Tensor):
            return LowerTriangularMaskWithTensorBias(bias)
        return BiasedMask(self, bias)

    def mask_spec(self) -> MaskSpec:
        """Return the parts that kernels evaluate."""
        return _CAUSAL


@dataclass(frozen=True, init=False, eq=False)
class LowerTriangularMaskWithTensorBias(LowerTriangularMask):
    """Let query i see the keys j <= i, and add a tensor to their scores."""

    HOLDS_DENSE_TENSOR = True

    _bias: Tensor

    def __init__(self, bias: Tensor) -> None:
        """Take a tensor [B, Hq, Mq, Mkv] where any extent may be 1 (see `add_bias`).

        Raises: TypeError if it is none.
        """
        super().__init__()
        if not isinstance(bias, Tensor):
            raise TypeError(f"{type(self).__name__}: expected a tensor, got {type(bias)}")
        object.__setattr__(self, "_bias", bias)

    def to(self, device: torch.device | str) -> Self:
        """Return the same mask with its tensor on `device`."""
        return type(self)(self._bias.to(device))

    def add_bias(self, bias: Tensor | RelativeBias) -> AttentionBias:
        """Return this mask with another kind of bias added too. See `AttentionBias.add_bias`."""
        return BiasedMask(self, bias)

    def mask_spec(self) -> MaskSpec:
        """Return the parts that kernels evaluate."""
        return MaskSpec(_bands.CAUSAL, bias=self._bias)


@dataclass(frozen=True)
class LowerTriangularFromBottomRightMask(AttentionBias):
    """Let query i see the keys j <= i + Mkv - Mq: causal, aligned at the last query and key.

    Equal to `LowerTriangularMask` if there are as many queries as keys. With more queries than
    keys the first Mq - Mkv queries see nothing, and their output is 0.

    >>> LowerTriangularFromBottomRightMask().materialize((2, 4)).exp()
    tensor([[1., 1., 1., 0.],
            [1., 1., 1., 1.]])
    """

    def make_local_attention(
        self, window_size: int
    ) -> LowerTriangularFromBottomRightLocalAttentionMask:
        """Return this mask narrowed to the last `window_size` keys, the diagonal included.

        Raises: TypeError if `window_size` is no int; ValueError if it is not positive.
        """
        return LowerTriangularFromBottomRightLocalAttentionMask(window_size)

    def mask_spec(self) -> MaskSpec:
        """Return the parts that kernels evaluate."""
        return _CAUSAL_FROM_BOTTOM_RIGHT


@dataclass(frozen=True)
class LowerTriangularFromBottomRightLocalAttentionMask(LowerTriangularFromBottomRightMask):
    """Let query i see the keys i + s - w < j <= i + s, with s = Mkv - Mq and w the window.

    Each query sees exactly w keys, its own included, as far as there are so many.

    Raises: TypeError if the window is no int; ValueError if it is not positive.
    """

    _window_size: int

    def __post_init__(self) -> None:
        _bands.check_window(self, self._window_size)

    def mask_spec(self) -> MaskSpec:
        """Return the parts that kernels evaluate."""
        return MaskSpec(_bands.causal_window_from_bottom_right(self._window_size))
