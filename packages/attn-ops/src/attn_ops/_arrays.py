"""Borrows the arrays of a call of `attn_ops.array`, and makes NumPy's for its results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    Array: TypeAlias = "SupportsDLPack | Buffer"

_CPU = 1  # DLPack's number
_DTYPES = ("float32", "bfloat16", "float16", "float64")


class SupportsDLPack(Protocol):
    """An array of any framework."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The extent of each axis."""
        ...

    @property
    def dtype(self) -> Any:  # noqa: ANN401 - each framework has its own
        """The element type, whose text ends in NumPy's name for it."""
        ...

    def __dlpack__(self) -> Any: ...  # noqa: ANN401 - a capsule, which has no type


def inputs(function: str, **arrays: Array) -> list[SupportsDLPack]:
    """Return the arrays with their shapes at hand; each has the four axes of `attention`.

    Raises: TypeError if one is no array; ValueError for another shape or dtype; NotImplementedError
    if one is not in CPU memory. `function` speaks, of arguments by their names.
    """
    borrowed = [_borrow(function, name, array) for name, array in arrays.items()]
    for name, array in zip(arrays, borrowed, strict=True):
        if len(array.shape) != 4:
            raise ValueError(
                f"{function}: {name} must have the axes [batch, position, head, width], "
                f"got shape {tuple(array.shape)}; add the missing axes with reshape"
            )
        if _dtype_name(array) not in _DTYPES:
            raise ValueError(
                f"{function}: {name} must be {', '.join(_DTYPES[:-1])} or {_DTYPES[-1]}, "
                f"got {array.dtype}; convert it"
            )
    return borrowed


def chunks(
    function: str, chunk_outs: Sequence[Array], chunk_lses: Sequence[Array]
) -> list[SupportsDLPack]:
    """Return the outputs to merge, one or more, as `inputs` does.

    Raises: as `inputs`; TypeError if either is no sequence; ValueError if there is none.
    """
    for name, given in (("chunk_outs", chunk_outs), ("chunk_lses", chunk_lses)):
        if not hasattr(given, "__len__"):
            raise TypeError(
                f"{function}: expected {name} as a sequence of arrays, got {type(given)}; pass "
                f"list({name})"
            )
    if len(chunk_outs) == 0:
        raise ValueError(f"{function}: chunk_outs must hold at least one chunk, got none")
    named = {f"chunk_outs[{index}]": chunk for index, chunk in enumerate(chunk_outs)}
    return inputs(function, **named)


def _borrow(function: str, name: str, array: Array) -> SupportsDLPack:
    if hasattr(array, "__dlpack__"):
        if not isinstance(array, np.ndarray):
            _check_is_in_cpu_memory(function, name, array)
        return cast("SupportsDLPack", array)
    try:
        return np.asarray(memoryview(cast("Buffer", array)))
    except TypeError:
        raise TypeError(
            f"{function}: {name} must be an array with DLPack or the buffer protocol, "
            f"got {type(array).__name__}; pass numpy.asarray({name})"
        ) from None


def _check_is_in_cpu_memory(function: str, name: str, array: Any) -> None:  # noqa: ANN401
    try:
        device, _ = array.__dlpack_device__() if hasattr(array, "__dlpack_device__") else (_CPU, 0)
    except (ValueError, BufferError) as refusal:  # of what has no memory, such as torch's meta
        raise NotImplementedError(
            f"{function}: expected {name} in CPU memory, got what DLPack cannot lend: {refusal}"
        ) from None
    if device != _CPU:
        raise NotImplementedError(
            f"{function}: expected {name} in CPU memory, as the result will be, got DLPack device "
            f"{int(device)}; call torch.ops.attn_ops, or _native.attention_forward with a workspace"
        )


def empty(function: str, shape: tuple[int, ...], like: SupportsDLPack) -> NDArray[Any]:
    """Return a new array in the dtype of `like`; raises if NumPy has none such."""
    return np.empty(shape, _numpy_dtype(function, like))


def empty_lse(query: SupportsDLPack) -> NDArray[Any]:
    """Return a new array [B, Hq, Mq] for the log-sum-exp of a query [B, Mq, Hq, K]."""
    batch, queries, heads, _ = query.shape
    double = _numpy_dtype("attention", query) == np.float64
    return np.empty((batch, heads, queries), np.float64 if double else np.float32)


def empty_bias_gradient(bias: Array | None) -> NDArray[Any]:
    """Return a new array like the bias.

    Raises: ValueError if there is none.
    """
    function = "attention_backward"
    if bias is None:
        raise ValueError(f"{function}: bias_gradient=True needs a bias, got None; pass the bias")
    borrowed = _borrow(function, "bias", bias)
    return empty(function, borrowed.shape, borrowed)


def _dtype_name(array: SupportsDLPack) -> str:
    # Every framework prints its dtypes as the name that NumPy knows, some behind a module's name.
    return str(array.dtype).rpartition(".")[2]


def _numpy_dtype(function: str, array: SupportsDLPack) -> np.dtype[Any]:
    name = _dtype_name(array)
    if name == "bfloat16":
        return _bfloat16(function)
    try:
        return np.dtype(name)
    except TypeError:
        raise ValueError(
            f"{function}: dtype must be float32, bfloat16, float16 or float64, got {array.dtype}"
        ) from None


def _bfloat16(function: str) -> np.dtype[Any]:
    try:
        import ml_dtypes  # noqa: PLC0415 - only bfloat16 needs it
    except ImportError:
        raise ImportError(
            f"{function}: a bfloat16 result needs the package ml_dtypes; install it, or cast the "
            "inputs to float32"
        ) from None
    return np.dtype(ml_dtypes.bfloat16)
