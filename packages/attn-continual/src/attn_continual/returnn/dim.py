"""`Dim`: an axis by what it is, not by where it lies or how long it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from attn_continual.returnn.tagged_tensor import TaggedTensor


class Dim:
    """Name an axis of tagged tensors; two of equal size are different axes.

    dimension: its size; or int lengths, a tagged tensor, of sequences that are padded to the
        longest; or None, for the size of the tensor that was made with it last.
    name: for messages.
    Raises: TypeError for another dimension.

    >>> Dim(3, name="a") == Dim(3, name="a")
    False
    """

    def __init__(self, dimension: int | TaggedTensor | None, *, name: str | None = None) -> None:
        if not (
            dimension is None or isinstance(dimension, int) or hasattr(dimension, "raw_tensor")
        ):
            raise TypeError(
                f"Dim: expected an int, lengths as a tagged tensor, or None, got {dimension!r}"
            )
        self.dimension = dimension if isinstance(dimension, int) else None
        self.lengths: TaggedTensor | None = None if isinstance(dimension, int) else dimension
        self.name = "unnamed" if name is None else name
        self._last_size: int | None = None

    @property
    def description(self) -> str:
        """The name."""
        return self.name

    @property
    def size(self) -> int:
        """How many places it has: the dimension, or what the last tensor made with it had.

        Raises: ValueError if there is no such tensor.
        """
        if self.dimension is not None:
            return self.dimension
        if self._last_size is not None:
            return self._last_size
        if self.lengths is not None:
            return int(self.lengths.raw_tensor.max())
        raise ValueError(
            f"Dim: expected {self} to have a size, got none; make a tensor with it before it is "
            "asked for"
        )

    def take_size(self, size: int) -> None:
        """Take the size that the axis has in a new tensor.

        Raises: ValueError if it has another dimension.
        """
        if self.dimension is None:
            self._last_size = size
        elif self.dimension != size:
            raise ValueError(f"Dim: expected {self.dimension} places along {self}, got {size}")

    def div_left(self, divisor: int | Dim) -> Dim:
        """Return a new dim of its size divided by `divisor`.

        Raises: ValueError if it does not divide.
        """
        parts = divisor.size if isinstance(divisor, Dim) else divisor
        if parts < 1 or self.size % parts != 0:
            raise ValueError(
                f"Dim: expected {self} to be a multiple of {divisor}, got {self.size} and {parts}"
            )
        return Dim(self.size // parts, name=f"{self.name}//{parts}")

    def __index__(self) -> int:
        return self.size

    def __deepcopy__(self, memo: dict[int, Any]) -> Dim:
        return self  # a copied layer still has the axes that tensors are tagged with

    def __reduce__(self) -> Any:  # noqa: ANN401  pickle's own signature
        if self is single_step_dim:
            return "single_step_dim"
        return "batch_dim" if self is batch_dim else super().__reduce__()

    def __repr__(self) -> str:
        size = self._last_size if self.dimension is None else self.dimension
        return f"Dim({self.name!r}, {'?' if size is None else size})"


single_step_dim: Final = Dim(1, name="single step")
"""The `axis` of what is one step, and has no axis of time."""

batch_dim: Final = Dim(None, name="batch")
"""The axis of samples."""


def as_dim(dim: int | Dim, name: str) -> Dim:
    """Return a dim as it is, and a new one for a number."""
    return dim if isinstance(dim, Dim) else Dim(dim, name=name)


def size_of(dim: int | Dim) -> int:
    """Return the size of a dim or the number itself."""
    return dim.size if isinstance(dim, Dim) else dim
