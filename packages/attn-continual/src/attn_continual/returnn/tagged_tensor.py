"""`TaggedTensor`: a tensor whose axes are `Dim`s, so that their order does not matter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attn_continual.returnn.dim import Dim

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch


class TaggedTensor:
    """Hold a torch tensor and what its axes are.

    dims: one for each axis, each once.
    dtype: its name, checked.
    feature_dim: the one of features, for functions that ask.
    Raises: ValueError if the tensor does not fit.

    >>> time, features = Dim(None, name="time"), Dim(3, name="features")
    >>> TaggedTensor("x", [time, features], raw_tensor=torch.zeros(5, 3))
    TaggedTensor('x', [Dim('time', 5), Dim('features', 3)], 'float32')
    """

    def __init__(
        self,
        name: str,
        dims: Sequence[Dim],
        dtype: str | None = None,
        *,
        raw_tensor: torch.Tensor,
        feature_dim: Dim | None = None,
    ) -> None:
        self.name = name
        self.dims = tuple(dims)
        self.raw_tensor = raw_tensor
        self.feature_dim = feature_dim
        if len(self.dims) != raw_tensor.dim() or len(self.dims_set) != len(self.dims):
            raise ValueError(
                f"TaggedTensor {name!r}: expected as many different dims as axes, got "
                f"{list(self.dims)} for {list(raw_tensor.shape)}"
            )
        if dtype is not None and dtype != self.dtype:
            raise ValueError(f"TaggedTensor {name!r}: expected {dtype}, got {self.dtype}")
        for dim, size in zip(self.dims, raw_tensor.shape, strict=True):
            dim.take_size(size)

    @property
    def dtype(self) -> str:
        """The name of the dtype, such as "float32"."""
        return str(self.raw_tensor.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.raw_tensor.device

    @property
    def dims_set(self) -> set[Dim]:
        """The dims, without an order."""
        return set(self.dims)

    def remaining_dims(self, remove: Dim | Iterable[Dim]) -> list[Dim]:
        """Return the dims without some, in their order.

        Raises: ValueError if one to remove is not there.
        """
        removed = [remove] if isinstance(remove, Dim) else list(remove)
        for dim in removed:
            if dim not in self.dims:
                raise ValueError(
                    f"TaggedTensor {self.name!r}: expected {dim} among its dims, got "
                    f"{list(self.dims)}"
                )
        return [dim for dim in self.dims if dim not in removed]

    def copy_compatible_to_dims_raw(self, dims: Sequence[Dim]) -> torch.Tensor:
        """Return a view whose axes are `dims` in that order; one that it lacks has size 1.

        Raises: ValueError if `dims` lacks one that it has.
        """
        missing = [dim for dim in self.dims if dim not in dims]
        if missing:
            raise ValueError(
                f"TaggedTensor {self.name!r}: expected no dims but {list(dims)}, got {missing} too"
            )
        held = [dim for dim in dims if dim in self.dims]
        raw = self.raw_tensor.permute([self.dims.index(dim) for dim in held])
        return raw[tuple(slice(None) if dim in held else None for dim in dims)]

    def copy_transpose(self, dims: Sequence[Dim]) -> TaggedTensor:
        """Return a view with the same dims in another order."""
        self_first = self.copy_compatible_to_dims_raw(dims)
        return TaggedTensor(self.name, dims, raw_tensor=self_first, feature_dim=self.feature_dim)

    def __repr__(self) -> str:
        return f"TaggedTensor({self.name!r}, {list(self.dims)}, {self.dtype!r})"


def convert_to_tensor(
    value: torch.Tensor | TaggedTensor,
    dims: Sequence[Dim] = (),
    *,
    name: str = "converted",
    feature_dim: Dim | None = None,
) -> TaggedTensor:
    """Tag the axes of a torch tensor; a tagged one is returned as it is."""
    if isinstance(value, TaggedTensor):
        return value
    return TaggedTensor(name, dims, raw_tensor=value, feature_dim=feature_dim)


def replace_dim(
    source: TaggedTensor, *, in_dim: Dim, out_dim: Dim | None = None
) -> tuple[TaggedTensor, Dim]:
    """Return the same tensor with `out_dim`, default a new one, in the place of `in_dim`.

    A dim that has no lengths of its own takes those of `in_dim`.
    Raises: ValueError if it has no `in_dim`, or `out_dim` has another size.
    """
    source.remaining_dims(in_dim)
    if out_dim is None:
        out_dim = Dim(in_dim.dimension, name=in_dim.name)
    if out_dim.dimension is None and out_dim.lengths is None:
        out_dim.lengths = in_dim.lengths
    dims = [out_dim if dim is in_dim else dim for dim in source.dims]
    feature_dim = out_dim if source.feature_dim is in_dim else source.feature_dim
    raw = source.raw_tensor
    return TaggedTensor(source.name, dims, raw_tensor=raw, feature_dim=feature_dim), out_dim
