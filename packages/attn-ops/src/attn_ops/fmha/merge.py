"""`merge_attentions`: attention over all keys from attention over chunks of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attn_ops._merge_op import MOST_CHUNKS, merge

_WHO = "merge_attentions"
_NARROW = (torch.float32, torch.bfloat16, torch.float16)


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
        tensors that are not on the CPU, or for a derivative of second order.
    Source: Juravsky et al. 2024, arXiv:2402.05099, section 3.1.
    """
    outs, lses = _Chunks.read("attn_split", attn_split), _Chunks.read("lse_split", lse_split)
    _check(outs, lses)
    _check_output_dtype(output_dtype, outs.first.dtype)
    has_groups = len(outs.shape) == 5
    working_dtype = torch.float64 if outs.first.dtype == torch.float64 else torch.float32
    out, lse = merge(
        [_canonical(out, has_groups) for out in outs.tensors],
        [_canonical(lse, has_groups).to(working_dtype) for lse in lses.tensors],
        output_dtype,
    )
    return out.view(outs.shape), lse.view(lses.shape).to(lses.first.dtype) if write_lse else None


@dataclass(frozen=True)
class _Chunks:
    """One of the arguments: a list of tensors, or of one tensor that stacks them."""

    name: str
    tensors: list[Tensor]
    is_stacked: bool

    @classmethod
    def read(cls, name: str, given: Tensor | Sequence[Tensor]) -> "_Chunks":
        is_stacked = isinstance(given, Tensor)
        chunks = cls(name, [given] if is_stacked else list(given), is_stacked)
        if not all(isinstance(tensor, Tensor) for tensor in chunks.tensors):
            raise TypeError(
                f"{_WHO}: expected {name} to be a tensor or a sequence of tensors, got "
                f"{[type(tensor).__name__ for tensor in chunks.tensors]}"
            )
        if not chunks.tensors or (is_stacked and given.dim() == 0) or chunks.count == 0:
            raise ValueError(f"{_WHO}: expected at least one chunk in {name}, got none")
        if chunks.count > MOST_CHUNKS:
            raise ValueError(
                f"{_WHO}: expected at most {MOST_CHUNKS} chunks, got {chunks.count} in {name}; "
                "merge the results of merges"
            )
        return chunks

    @property
    def first(self) -> Tensor:
        return self.tensors[0]

    @property
    def count(self) -> int:
        return self.first.shape[0] if self.is_stacked else len(self.tensors)

    @property
    def shape(self) -> torch.Size:
        """Return the shape of one chunk."""
        return self.first.shape[1:] if self.is_stacked else self.first.shape


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
    batch, queries, *heads, _width = outs.shape
    _check_alike(outs, outs.shape, outs.first.device)
    _check_alike(lses, torch.Size((batch, *heads, queries)), outs.first.device)
    if outs.first.dtype not in {*_NARROW, torch.float64}:
        raise ValueError(
            f"{_WHO}: expected attn_split of float32, bfloat16, float16 or float64, got "
            f"{outs.first.dtype}; convert it"
        )
    if not lses.first.is_floating_point():
        raise ValueError(f"{_WHO}: expected a floating-point lse_split, got {lses.first.dtype}")
    if outs.first.device.type != "cpu":
        raise NotImplementedError(
            f"{_WHO}: expected CPU tensors, got device={outs.first.device} (supported: {{'cpu'}})"
        )


def _check_alike(chunks: _Chunks, shape: torch.Size, device: torch.device) -> None:
    for index, tensor in enumerate(chunks.tensors):
        name = chunks.name if chunks.is_stacked else f"{chunks.name}[{index}]"
        got = tensor.shape[1:] if chunks.is_stacked else tensor.shape
        if got != shape:
            stacked = " in each chunk of" if chunks.is_stacked else ""
            raise ValueError(
                f"{_WHO}: expected shape {list(shape)}{stacked} {name}, as the first of attn_split "
                f"asks for, got {list(got)}"
            )
        if tensor.dtype != chunks.first.dtype or tensor.device != device:
            raise ValueError(
                f"{_WHO}: expected {name} of {chunks.first.dtype} on {device}, like the other "
                f"chunks, got {tensor.dtype} on {tensor.device}"
            )


def _check_output_dtype(output_dtype: torch.dtype | None, dtype: torch.dtype) -> None:
    allowed = (torch.float64,) if dtype == torch.float64 else _NARROW
    if output_dtype is not None and output_dtype not in allowed:
        raise ValueError(
            f"{_WHO}: expected output_dtype to be one of {', '.join(map(str, allowed))} for chunks "
            f"of {dtype}, got {output_dtype}"
        )


def _canonical(tensor: Tensor, has_groups: bool) -> Tensor:
    """Join the axes G and H, and make rows contiguous: a view, unless strides forbid it."""
    tensor = tensor.flatten(-3, -2) if has_groups else tensor
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
