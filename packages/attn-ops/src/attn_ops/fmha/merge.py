"""`merge_attentions`: attention over all keys from attention over chunks of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attn_ops._merge_op import MOST_CHUNKS, merge
from attn_ops.operands import with_unit_stride, working_dtype

_WHO = "merge_attentions"
_NARROW = (torch.float32, torch.bfloat16, torch.float16)
_DTYPES = (*_NARROW, torch.float64)
_DEVICES = ("cpu", "cuda")


def merge_attentions(
    attn_split: Tensor | Sequence[Tensor],
    lse_split: Tensor | Sequence[Tensor],
    write_lse: bool = True,
    output_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Merge attention of the same queries over chunks of the keys into that over all keys.

    out = sum_c exp(lse_c - lse) out_c with lse = log(sum_c exp(lse_c)), where no two chunks share
    a key. Differentiable once, in reverse, in every output and every LSE, through both results: so
    `memory_efficient_attention_partial` and this have the gradient of attention over all keys.

    Shapes: `attn_split` a list of [B, M, H, K] or [B, M, G, H, K], or one tensor that stacks them,
        [chunks, ...]; `lse_split` likewise a list of [B, H, M] or [B, G, H, M], or a stack. Result:
        an output and an LSE of the shapes of one chunk; None for the LSE unless `write_lse`.
    Dtypes: outputs alike: float32, bfloat16, float16 or float64; `output_dtype`: any of the first
        three (float64 for float64), default that of the chunks. LSEs alike, of any floating dtype,
        which the result's LSE has too.
    Numerics: float32 (float64 for float64 outputs). A chunk whose LSE is -inf for a query adds
        nothing to it, whatever its output holds; a query without any other gives 0 and LSE -inf.
        The same bits on every run and for any number of threads.
    Raises: ValueError, naming the argument, if shapes, dtypes or devices do not fit each other, or
        for more than 1024 chunks; TypeError if an argument is no tensor; NotImplementedError for
        tensors on neither CPU nor CUDA, or for a derivative of second order.
    Source: Juravsky et al. 2024, arXiv:2402.05099, section 3.1.
    """
    outs, lses = _Chunks.read("attn_split", attn_split), _Chunks.read("lse_split", lse_split)
    _check(outs, lses)
    _check_output_dtype(output_dtype, outs.tensors[0].dtype)
    has_groups = len(outs.shape) == 5
    lse_dtype = lses.tensors[0].dtype
    dtype = working_dtype(outs.tensors[0].dtype)
    out, lse = merge(
        [_canonical(out, has_groups) for out in outs.tensors],
        [_canonical(lse, has_groups, dtype) for lse in lses.tensors],
        output_dtype,
    )
    if has_groups:
        out, lse = out.view(outs.shape), lse.view(lses.shape)
    if not write_lse:
        return out, None
    return out, lse if lse.dtype == lse_dtype else lse.to(lse_dtype)


@dataclass(frozen=True)
class _Chunks:
    """One of the arguments: a list of tensors, or of one tensor that stacks them."""

    name: str
    tensors: list[Tensor]
    is_stacked: bool
    count: int
    shape: torch.Size
    """Of one chunk."""

    @classmethod
    def read(cls, name: str, given: Tensor | Sequence[Tensor]) -> "_Chunks":
        is_stacked = isinstance(given, Tensor)
        tensors = [given] if is_stacked else list(given)
        if not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise TypeError(
                f"{_WHO}: expected {name} to be a tensor or a sequence of tensors, got "
                f"{[type(tensor).__name__ for tensor in tensors]}"
            )
        shape = tensors[0].shape if tensors else torch.Size()
        count = (shape[0] if shape else 0) if is_stacked else len(tensors)
        if count == 0:
            raise ValueError(f"{_WHO}: expected at least one chunk in {name}, got none")
        if count > MOST_CHUNKS:
            raise ValueError(
                f"{_WHO}: expected at most {MOST_CHUNKS} chunks, got {count} in {name}; "
                "merge the results of merges"
            )
        return cls(name, tensors, is_stacked, count, shape[1:] if is_stacked else shape)


def _check(outs: _Chunks, lses: _Chunks) -> None:
    """Raise unless every chunk has an output and an LSE of the same queries."""
    if outs.count != lses.count:
        raise ValueError(
            f"{_WHO}: expected as many chunks in lse_split as in attn_split, got {lses.count} and "
            f"{outs.count}; pass the LSE of every output"
        )
    if len(outs.shape) not in {4, 5} or outs.shape[-1] == 0:
        raise ValueError(
            f"{_WHO}: expected chunks [B, M, H, K] or [B, M, G, H, K] in attn_split, with K >= 1, "
            f"got {list(outs.shape)}"
        )
    first, lse_dtype = outs.tensors[0], lses.tensors[0].dtype
    batch, queries, *heads, _width = outs.shape
    _check_alike(outs, outs.shape, first.device)
    _check_alike(lses, torch.Size((batch, *heads, queries)), first.device)
    if first.dtype not in _DTYPES:
        raise ValueError(
            f"{_WHO}: expected attn_split of float32, bfloat16, float16 or float64, got "
            f"{first.dtype}; convert it"
        )
    if not lse_dtype.is_floating_point:
        raise ValueError(f"{_WHO}: expected a floating-point lse_split, got {lse_dtype}")
    if first.device.type not in _DEVICES:
        raise NotImplementedError(
            f"{_WHO}: expected CPU or CUDA tensors, got device={first.device}"
        )


def _check_alike(chunks: _Chunks, shape: torch.Size, device: torch.device) -> None:
    dtype = chunks.tensors[0].dtype
    for index, tensor in enumerate(chunks.tensors):
        name = chunks.name if chunks.is_stacked else f"{chunks.name}[{index}]"
        got = chunks.shape if chunks.is_stacked else tensor.shape
        if got != shape:
            what = f"every chunk of {name}" if chunks.is_stacked else name
            raise ValueError(
                f"{_WHO}: expected {what} of shape {list(shape)}, as the first chunk of attn_split "
                f"asks for, got {list(got)}"
            )
        if tensor.dtype != dtype or tensor.device != device:
            raise ValueError(
                f"{_WHO}: expected {name} of {dtype} on {device}, like the other chunks, got "
                f"{tensor.dtype} on {tensor.device}"
            )


def _check_output_dtype(output_dtype: torch.dtype | None, dtype: torch.dtype) -> None:
    allowed = (torch.float64,) if dtype == torch.float64 else _NARROW
    if output_dtype is not None and output_dtype not in allowed:
        raise ValueError(
            f"{_WHO}: expected output_dtype to be one of {', '.join(map(str, allowed))} for chunks "
            f"of {dtype}, got {output_dtype}"
        )


def _canonical(tensor: Tensor, has_groups: bool, dtype: torch.dtype | None = None) -> Tensor:
    """Join the axes G and H, and make rows contiguous: a view, unless that takes a copy."""
    tensor = tensor.flatten(-3, -2) if has_groups else tensor
    tensor = tensor if dtype is None or tensor.dtype == dtype else tensor.to(dtype)
    return with_unit_stride(tensor)
