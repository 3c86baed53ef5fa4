"""Checks what a user passes, by the name of the argument: shapes, strides, dtypes, devices.

What a mask says is checked by `_canonical`, where it meets the inputs.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attn_ops.fmha.attn_bias import AttentionBias

WHO = "memory_efficient_attention"
"""Who speaks in an error, whichever of its forms was called."""

_LAYOUTS = {3: "[B, M, K]", 4: "[B, M, H, K]", 5: "[B, M, G, H, K]"}
_ALL_LAYOUTS = "[B, M, K] (one head), [B, M, H, K] or [B, M, G, H, K]"


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call, as the user gave them; what operators are asked about."""

    query: Tensor
    """[B, Mq, Hq, K], or without the H axis, or with [G, H] in its place"""
    key: Tensor
    """[B, Mkv, Hkv, K], likewise"""
    value: Tensor
    """[B, Mkv, Hkv, Kv], likewise"""
    attn_bias: object = None
    """None, an AttentionBias, or a tensor broadcastable to [B, Hq, Mq, Mkv], likewise"""
    p: float = 0.0
    scale: float | None = None
    output_dtype: torch.dtype | None = None
    is_partial: bool = False
    """The output is to be merged with others, by its LSE."""
    sink: Tensor | None = None
    """[Hq], or [G, H]"""
    softcap: float | None = None


def check(inputs: Inputs) -> None:
    """Raise if the arguments contradict each other or the documentation.

    Raises: TypeError if query, key, value or sink is no tensor, attn_bias a class, or p, scale,
    softcap or output_dtype no number or dtype; ValueError for all else. Both name the argument,
    what was expected and what came.
    """
    _check_tensors(inputs)
    _check_shapes(inputs)
    _check_kind_of_bias(inputs.attn_bias)
    _check_numbers(inputs)
    _check_output_dtype(inputs)


def _check_tensors(inputs: Inputs) -> None:
    for name, tensor in _named_tensors(inputs):
        check_is_tensor(name, tensor)
        if tensor.dim() not in _LAYOUTS:
            raise ValueError(
                f"{WHO}: expected {name} {_ALL_LAYOUTS}, got {list(tensor.shape)} with "
                f"{tensor.dim()} dimensions; reshape it"
            )
        if tensor is not inputs.query:
            _check_like_query(name, tensor, inputs.query)
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(
                f"{WHO}: expected the last dimension of {name} with stride 1, got "
                f"{tensor.stride(-1)}; call {name}.contiguous()"
            )


def _named_tensors(inputs: Inputs) -> tuple[tuple[str, Tensor], ...]:
    return ("query", inputs.query), ("key", inputs.key), ("value", inputs.value)


def check_is_tensor(name: str, tensor: object) -> None:
    """Raise unless `tensor` is one that kernels can read by strides."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{WHO}: expected a torch.Tensor as {name}, got {type(tensor)}")
    if tensor.is_nested:
        raise ValueError(
            f"{WHO}: expected a strided {name}, got a nested tensor; concatenate its parts along M "
            "and pass a BlockDiagonalMask, whose from_tensor_list does both"
        )
    if tensor.layout != torch.strided:
        raise ValueError(f"{WHO}: expected a strided {name}, got layout {tensor.layout}")


def _check_like_query(name: str, tensor: Tensor, query: Tensor) -> None:
    if tensor.dim() != query.dim():
        raise ValueError(
            f"{WHO}: expected query, key and value with as many dimensions, each "
            f"{_LAYOUTS[query.dim()]}, got {name} {list(tensor.shape)} and query "
            f"{list(query.shape)}"
        )
    if tensor.device != query.device:
        raise ValueError(
            f"{WHO}: expected query, key and value on one device, got {name} on "
            f"{tensor.device} and query on {query.device}"
        )
    if tensor.dtype != query.dtype:
        raise ValueError(
            f"{WHO}: expected query, key and value of one dtype, got {name} of {tensor.dtype} "
            f"and query of {query.dtype}"
        )


def _check_shapes(inputs: Inputs) -> None:
    query, key, value = inputs.query.shape, inputs.key.shape, inputs.value.shape
    if min(query[-1], value[-1], *key[2:-1]) < 1:
        raise ValueError(
            f"{WHO}: expected one head or more, of width 1 or more, got query {list(query)}, key "
            f"{list(key)}, value {list(value)}"
        )
    same_batch = query[0] == key[0] == value[0]
    same_keys = key[:-1] == value[:-1] and query[-1] == key[-1]
    if len(query) == 4:
        same_heads = query[2] % key[2] == 0
        rule = f"query's {query[2]} heads a multiple of key's {key[2]}"
    else:
        same_heads = query[2:-1] == key[2:-1]
        rule = f"equal heads, not query's {list(query[2:-1])} and key's {list(key[2:-1])}"
    if same_batch and same_keys and same_heads:
        return
    raise ValueError(
        f"{WHO}: Incompatible shapes for attention inputs:\n"
        f"  query.shape: {list(query)}\n  key.shape  : {list(key)}\n  value.shape: {list(value)}\n"
        "expected one B, one K for query and key, one Mkv and one number of heads for key and "
        f"value, and {'equal heads' if same_heads else rule}.\n"
        "HINT: We don't support broadcasting, please use `expand` yourself before calling "
        "`memory_efficient_attention` if you need to"
    )


def _check_kind_of_bias(attn_bias: object) -> None:
    if isinstance(attn_bias, Tensor):
        check_is_tensor("attn_bias", attn_bias)
    elif isinstance(attn_bias, type) and issubclass(attn_bias, AttentionBias):
        raise TypeError(
            f"{WHO}: expected attn_bias to be a mask, got the class {attn_bias.__name__}; pass an "
            f"instance, such as {attn_bias.__name__}()"
        )


def _check_numbers(inputs: Inputs) -> None:
    p, scale, softcap = inputs.p, inputs.scale, inputs.softcap
    if not isinstance(p, (int, float)):
        raise TypeError(f"{WHO}: expected a number as p, got {type(p)}")
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{WHO}: expected a dropout probability p in [0, 1], got {p}")
    if scale is not None and not isinstance(scale, (int, float)):
        raise TypeError(f"{WHO}: expected a number or None as scale, got {type(scale)}")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"{WHO}: expected a finite scale, got {scale}")
    if softcap is not None and not isinstance(softcap, (int, float)):
        raise TypeError(f"{WHO}: expected a number or None as softcap, got {type(softcap)}")
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise ValueError(f"{WHO}: expected a finite softcap above 0, or None, got {softcap}")


def _check_output_dtype(inputs: Inputs) -> None:
    output_dtype = inputs.output_dtype
    if output_dtype is None:
        return
    if not isinstance(output_dtype, torch.dtype):
        raise TypeError(f"{WHO}: expected a torch.dtype as output_dtype, got {type(output_dtype)}")
    narrow = (torch.float32, torch.bfloat16, torch.float16)
    allowed = narrow if inputs.query.dtype in narrow else (inputs.query.dtype,)
    if output_dtype not in allowed:
        raise ValueError(
            f"{WHO}: expected output_dtype in {allowed} for a query of {inputs.query.dtype}, got "
            f"{output_dtype}"
        )
