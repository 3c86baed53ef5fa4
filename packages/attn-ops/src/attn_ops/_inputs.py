"""Checks what a user passes, and views it as the one layout that operators read.

Every error a user can make in shapes, strides, dtypes, devices or numbers is raised here, by the
name of the argument.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_WHO = "memory_efficient_attention"
_LAYOUTS = {3: "[B, M, K]", 4: "[B, M, H, K]", 5: "[B, M, G, H, K]"}
_BIAS_LAYOUTS = {3: "[B, Mq, Mkv]", 4: "[B, H, Mq, Mkv]", 5: "[B, G, H, Mq, Mkv]"}


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call, as the user gave them."""

    query: Tensor
    """[B, Mq, Hq, K], or without the H axis, or with [G, H] in its place"""
    key: Tensor
    """[B, Mkv, Hkv, K], likewise"""
    value: Tensor
    """[B, Mkv, Hkv, Kv], likewise"""
    attn_bias: object
    """None, an AttentionBias, or a tensor broadcastable to [B, Hq, Mq, Mkv], likewise"""
    p: float
    scale: float | None
    output_dtype: torch.dtype | None


@dataclass(frozen=True)
class CanonicalInputs:
    """The same tensors as operators read them: views, unless strides make a copy unavoidable."""

    query: Tensor
    """[B, Mq, Hq, K]"""
    key: Tensor
    """[B, Mkv, Hkv, K], with Hq a multiple of Hkv"""
    value: Tensor
    """[B, Mkv, Hkv, Kv]"""
    bias: Tensor | None
    """[B or 1, Hq or 1, Mq or 1, Mkv or 1]"""


def check(inputs: Inputs) -> None:
    """Raise if the arguments contradict each other or the documentation.

    Raises: TypeError if query, key or value is no tensor, or p, scale or output_dtype no number or
    dtype; ValueError for all else. Both name the argument, what was expected and what came.
    """
    _check_tensors(inputs)
    _check_shapes(inputs)
    if isinstance(inputs.attn_bias, Tensor):
        _check_bias(inputs, inputs.attn_bias)
    _check_numbers(inputs)


def _named_tensors(inputs: Inputs) -> tuple[tuple[str, Tensor], ...]:
    return ("query", inputs.query), ("key", inputs.key), ("value", inputs.value)


def _check_tensors(inputs: Inputs) -> None:
    query = inputs.query
    for name, tensor in _named_tensors(inputs):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{_WHO}: expected a torch.Tensor as {name}, got {type(tensor)}")
        if tensor.layout != torch.strided:
            raise ValueError(f"{_WHO}: expected a strided {name}, got layout {tensor.layout}")
        if tensor.dim() not in _LAYOUTS or tensor.dim() != query.dim():
            raise ValueError(
                f"{_WHO}: expected query, key and value alike with 3 dimensions [B, M, K], "
                f"4 [B, M, H, K] or 5 [B, M, G, H, K], got {name} with {tensor.dim()} and query "
                f"with {query.dim()}"
            )
        if tensor.device != query.device:
            raise ValueError(
                f"{_WHO}: expected query, key and value on one device, got {name} on "
                f"{tensor.device} and query on {query.device}"
            )
        if tensor.dtype != query.dtype:
            raise ValueError(
                f"{_WHO}: expected query, key and value of one dtype, got {name} of {tensor.dtype} "
                f"and query of {query.dtype}"
            )
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(
                f"{_WHO}: expected the last dimension of {name} with stride 1, got "
                f"{tensor.stride(-1)}; call {name}.contiguous()"
            )


def _check_shapes(inputs: Inputs) -> None:
    query, key, value = inputs.query.shape, inputs.key.shape, inputs.value.shape
    same_batch = query[0] == key[0] == value[0]
    same_keys = key[:-1] == value[:-1] and query[-1] == key[-1]
    if any(extent < 1 for extent in (query[-1], value[-1], *key[2:-1])):
        raise ValueError(
            f"{_WHO}: expected one head or more, of width 1 or more, got query {list(query)}, key "
            f"{list(key)}, value {list(value)}"
        )
    if len(query) == 4:
        same_heads = key[2] > 0 and query[2] % key[2] == 0
    else:
        same_heads = query[2:-1] == key[2:-1]
    if same_batch and same_keys and same_heads:
        return
    rule = "query's heads a multiple of key's" if len(query) == 4 else "equal heads"
    raise ValueError(
        f"{_WHO}: Incompatible shapes for attention inputs:\n"
        f"  query.shape: {list(query)}\n  key.shape  : {list(key)}\n  value.shape: {list(value)}\n"
        f"expected one B, one K for query and key, one Mkv for key and value, and {rule}.\n"
        "HINT: We don't support broadcasting, please use `expand` yourself before calling "
        "`memory_efficient_attention` if you need to"
    )


def _check_bias(inputs: Inputs, bias: Tensor) -> None:
    query, key = inputs.query, inputs.key
    full = (query.shape[0], *query.shape[2:-1], query.shape[1], key.shape[1])
    if bias.dim() != len(full) or any(
        size not in (1, expected) for size, expected in zip(bias.shape, full, strict=True)
    ):
        raise ValueError(
            f"{_WHO}: expected attn_bias {_BIAS_LAYOUTS[query.dim()]} = {list(full)}, where any "
            f"extent may be 1, got {list(bias.shape)}"
        )
    if bias.layout != torch.strided:
        raise ValueError(f"{_WHO}: expected a strided attn_bias, got layout {bias.layout}")
    if bias.device != query.device:
        raise ValueError(
            f"{_WHO}: expected attn_bias on query's device {query.device}, got {bias.device}"
        )
    if bias.dtype not in (query.dtype, torch.float32, torch.bool):
        raise ValueError(
            f"{_WHO}: expected attn_bias of query's dtype {query.dtype}, torch.float32 or "
            f"torch.bool (True keeps a key), got {bias.dtype}"
        )


def _check_numbers(inputs: Inputs) -> None:
    p, scale, output_dtype = inputs.p, inputs.scale, inputs.output_dtype
    if not isinstance(p, (int, float)):
        raise TypeError(f"{_WHO}: expected a number as p, got {type(p)}")
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{_WHO}: expected a dropout probability p in [0, 1], got {p}")
    if scale is not None and not isinstance(scale, (int, float)):
        raise TypeError(f"{_WHO}: expected a number or None as scale, got {type(scale)}")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"{_WHO}: expected a finite scale, got {scale}")
    if output_dtype is None:
        return
    if not isinstance(output_dtype, torch.dtype):
        raise TypeError(f"{_WHO}: expected a torch.dtype as output_dtype, got {type(output_dtype)}")
    narrow = (torch.float32, torch.bfloat16, torch.float16)
    allowed = narrow if inputs.query.dtype in narrow else (inputs.query.dtype,)
    if output_dtype not in allowed:
        raise ValueError(
            f"{_WHO}: expected output_dtype in {allowed} for a query of {inputs.query.dtype}, got "
            f"{output_dtype}"
        )


def canonical(inputs: Inputs) -> CanonicalInputs:
    """Return [B, M, H, K] views of checked inputs.

    Keys and values that repeat over H in the 5-D layout (stride 0) become their G distinct heads.
    """
    query, key, value = inputs.query, inputs.key, inputs.value
    bias = inputs.attn_bias if isinstance(inputs.attn_bias, Tensor) else None
    if query.dim() == 3:
        query, key, value = query.unsqueeze(2), key.unsqueeze(2), value.unsqueeze(2)
        bias = None if bias is None else bias.unsqueeze(1)
    elif query.dim() == 5:
        groups, heads = query.shape[2:4]
        query = query.flatten(2, 3)
        if _repeats(key, 3) and _repeats(value, 3):
            key, value = key.select(3, 0), value.select(3, 0)
        else:
            key, value = key.flatten(2, 3), value.flatten(2, 3)
        bias = None if bias is None else _flatten_bias_heads(bias, groups, heads)
    return CanonicalInputs(query, key, value, None if bias is None else _unrepeat(bias))


def restore_layout(out: Tensor, query: Tensor) -> Tensor:
    """View an operator's [B, Mq, Hq, Kv] as the user's layout, that of `query`."""
    if query.dim() == 3:
        return out.squeeze(2)
    if query.dim() == 5:
        return out.unflatten(2, query.shape[2:4])
    return out


def _repeats(tensor: Tensor, axis: int) -> bool:
    """Return whether every index of `axis` reads the same memory, so that one stands for all.

    Not for a leaf that wants a gradient: its own gradient has an entry for every index.
    """
    is_leaf = tensor.requires_grad and tensor.is_leaf
    return tensor.shape[axis] > 1 and tensor.stride(axis) == 0 and not is_leaf


def _unrepeat(bias: Tensor) -> Tensor:
    """Narrow the axes that repeat to extent 1: the gradient is then summed where it is made."""
    for axis in range(bias.dim()):
        if _repeats(bias, axis):
            bias = bias.narrow(axis, 0, 1)
    return bias


def _flatten_bias_heads(bias: Tensor, groups: int, heads: int) -> Tensor:
    """View [B, G, H, Mq, Mkv] as [B, G * H, Mq, Mkv], or with extent 1 if neither axis has more."""
    if bias.shape[1] == 1 and bias.shape[2] == 1:
        return bias.squeeze(2)
    return bias.expand(-1, groups, heads, -1, -1).flatten(1, 2)
