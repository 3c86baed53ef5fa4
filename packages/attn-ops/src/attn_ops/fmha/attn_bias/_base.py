"""The base of every mask, and what joins a mask with a bias."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attn_ops.fmha.attn_bias import _dense, _drawing
from attn_ops.mask import MaskSpec, Relative

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from typing_extensions import Self


class AttentionBias:
    """Say which keys each query sees, in a form that kernels evaluate on the fly.

    Accepted wherever `memory_efficient_attention` takes `attn_bias`; no tensor of size Mq x Mkv is
    made. In a notebook a mask shows itself as a picture.
    """

    HOLDS_DENSE_TENSOR: bool = False
    """Whether it carries a tensor that is added to the scores."""

    def mask_spec(self) -> MaskSpec:
        """Return the parts that kernels evaluate."""
        raise NotImplementedError(f"{type(self).__name__} does not say what queries see")

    def to(self, device: torch.device | str) -> Self:
        """Return the same mask, of the same class, for tensors on `device`."""
        del device  # most masks without sequences hold no tensors
        return self

    def materialize(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return the mask as a tensor: what is added to the scores, -inf where a key is not seen.

        For debugging and tests: kernels never call it.

        Shapes: `shape` [..., Mq, Mkv]; the result has it, expanded over the leading axes. Where
            heads differ, `shape` is [..., Hq, Mq, Mkv] or [B, G, H, Mq, Mkv].
        Raises: ValueError if `shape` has too few axes or does not fit.
        """
        result_shape = self.materialized_shape(tuple(shape))
        with torch.device("cpu"):  # whatever the default is
            return _dense.materialize(self.mask_spec(), result_shape, dtype, device)

    def materialized_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Check the shape that `materialize` is asked for, and return that of its result."""
        if len(shape) < 2:
            raise ValueError(f"materialize: expected shape [..., Mq, Mkv], got {shape}")
        return shape

    def natural_shape(self) -> tuple[int, int] | None:
        """Return the Mq and Mkv it is made for, or None if it serves all."""
        return None

    def check_fits(self, num_queries: int, num_keys: int) -> None:
        """Check that the mask is made for so many rows of query and key; most serve any number.

        Lengths that came as tensors, or were changed in place, are not compared: the tensors of a
        captured graph have rows for the most there may be, and rows beyond the sequences give 0.
        In a compiled region none are compared.

        Raises: ValueError if the lengths are others.
        """
        del num_queries, num_keys

    def add_bias(self, bias: Tensor | RelativeBias) -> AttentionBias:
        """Return this mask with a bias added to the scores of the keys that are seen.

        bias: a tensor as `memory_efficient_attention` takes it, [B, Hq, Mq, Mkv] for 4-D inputs,
            where any extent may be 1; its indices are rows of query and key as they lie in memory,
            so [1, Hq, sum of Mq, length of key] for packed sequences. Or an `AlibiBias` or a
            `RelativePositionBias`: then distances count from the diagonal of this mask, or where
            it has none from that which ends at the last query and key of each sequence.
        Raises: TypeError if `bias` is neither; ValueError if the mask holds such a bias already.
        """
        return BiasedMask(self, bias)

    def _repr_svg_(self) -> str:
        """Return a picture of which keys each query sees; sequences have colours of their own."""
        shape = self.natural_shape()
        return _drawing.svg(_drawing.picture(type(self).__name__, self.mask_spec(), shape))

    def plot(self, shape: tuple[int, int] | None = None, ax: Axes | None = None) -> Axes:
        """Draw which keys each query sees with matplotlib, and return the axes.

        shape: Mq and Mkv; default: those that the mask is made for, or 16 and 16.
        Raises: ImportError if matplotlib is not installed.
        """
        shape = self.natural_shape() if shape is None else shape
        return _drawing.plot(_drawing.picture(type(self).__name__, self.mask_spec(), shape), ax)


class RelativeBias(AttentionBias):
    """A bias of the distance between query and key alone; by itself it lets every key be seen."""


@dataclass(frozen=True, eq=False)
class BiasedMask(AttentionBias):
    """What `mask.add_bias(bias)` makes: the keys that `mask` shows, their scores plus `bias`.

    What only some masks have, such as `split`, is found at its `mask`.
    """

    mask: AttentionBias
    bias: Tensor | RelativeBias

    def __post_init__(self) -> None:
        if not isinstance(self.bias, (Tensor, RelativeBias)):
            raise TypeError(
                "add_bias: expected a tensor, an AlibiBias or a RelativePositionBias, got "
                f"{type(self.bias)}"
            )
        holds = self.mask.mask_spec()
        adds = _parts_of(self.bias)
        for what, first, second in (
            ("tensor", holds.bias, adds.bias),
            ("AlibiBias", holds.relative.slopes, adds.relative.slopes),
            ("RelativePositionBias", holds.relative.table, adds.relative.table),
        ):
            if first is not None and second is not None:
                raise ValueError(
                    f"add_bias: expected a mask without a {what}, got one that holds one already; "
                    "add the two up first"
                )

    @property
    def HOLDS_DENSE_TENSOR(self) -> bool:  # type: ignore[override]  # noqa: N802  xFormers' name
        """Whether it carries a tensor that is added to the scores."""
        return self.mask_spec().bias is not None

    def to(self, device: torch.device | str) -> Self:
        """Return the same mask and bias on `device`."""
        return replace(self, mask=self.mask.to(device), bias=self.bias.to(device))

    def mask_spec(self) -> MaskSpec:
        """Return the parts that kernels evaluate."""
        spec, adds = self.mask.mask_spec(), _parts_of(self.bias)
        if adds.bias is not None:
            return replace(spec, bias=adds.bias)
        held, added = spec.relative, adds.relative
        slopes = held.slopes if added.slopes is None else added.slopes
        table = held.table if added.table is None else added.table
        return replace(spec, relative=Relative(slopes, table))

    def materialized_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Check the shape that `materialize` is asked for, and return that of its result."""
        return self.mask.materialized_shape(shape)

    def natural_shape(self) -> tuple[int, int] | None:
        """Return the Mq and Mkv it is made for."""
        return self.mask.natural_shape()

    def check_fits(self, num_queries: int, num_keys: int) -> None:
        """Check that its mask is made for so many rows of query and key."""
        self.mask.check_fits(num_queries, num_keys)

    if not TYPE_CHECKING:  # type checkers know that there is no such attribute

        def __getattr__(self, name: str) -> object:
            advice = f"; use .mask.{name}" if hasattr(vars(self).get("mask"), name) else ""
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{advice}")


def _parts_of(bias: Tensor | RelativeBias) -> MaskSpec:
    return MaskSpec(bias=bias) if isinstance(bias, Tensor) else bias.mask_spec()
