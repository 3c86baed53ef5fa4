"""Checks what a user passes, by the name of the argument: shapes, strides, dtypes, devices.

What a mask says is checked by `_canonical`, where it meets the inputs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attn_ops.fmha.attn_bias import AttentionBias
from attn_ops.scalars import plain_number

WHO = "memory_efficient_attention"
"""Who speaks in an error, whichever of its forms was called."""

_LAYOUTS = {3: "[B, M, K]", 4: "[B, M, H, K]", 5: "[B, M, G, H, K]"}
_NO_BROADCASTING = (
    "We don't support broadcasting, please use `expand` yourself before calling "
    "`memory_efficient_attention` if you need to"
)
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


def checked(inputs: Inputs) -> Inputs:
    """Return the inputs with Python's own numbers, if arguments agree with the documentation.

    Raises: TypeError if query, key, value or sink is no tensor, attn_bias neither a tensor nor a
    mask, or p, scale, softcap or output_dtype no number or dtype; ValueError for all else. Both
    name the argument, what was expected and what came.
    """
    _check_kind_of_bias(inputs.attn_bias)
    _check_tensors(inputs)
    _check_shapes(inputs)
    inputs = _with_plain_numbers(inputs)
    _check_numbers(inputs)
    _check_output_dtype(inputs)
    return inputs


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
        # Of an empty one nothing is read, and contiguous() would leave its strides.
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1 and tensor.numel() > 0:
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
    broken = _broken_rules(query, key, value)
    if not broken:
        return
    lines = [
        "Incompatible shapes for attention inputs:",
        f"  query.shape: {list(query)}",
        f"  key.shape  : {list(key)}",
        f"  value.shape: {list(value)}",
        *(f"expected {rule}, got {', '.join(map(str, got))}" for rule, got in broken),
    ]
    hint = _other_layout(inputs)
    if hint is None and any(1 in got for _, got in broken):
        hint = _NO_BROADCASTING
    if hint is not None:
        lines.append(f"HINT: {hint}")
    raise ValueError(f"{WHO}: " + "\n".join(lines))


def _broken_rules(
    query: Sequence[int], key: Sequence[int], value: Sequence[int]
) -> list[tuple[str, tuple[int, ...]]]:
    """Return each rule that the shapes break, and the extents that break it."""
    rules = [
        ("one B for query, key and value", (query[0], key[0], value[0])),
        ("one Mkv for key and value", (key[1], value[1])),
        ("one K for query and key", (query[-1], key[-1])),
    ]
    if len(query) == 4:
        rules.append(("one number of heads for key and value", (key[2], value[2])))
    if len(query) == 5:
        rules.append(("one G for query, key and value", (query[2], key[2], value[2])))
        rules.append(("one H for query, key and value", (query[3], key[3], value[3])))
    broken = [(rule, got) for rule, got in rules if any(extent != got[0] for extent in got)]
    if len(query) == 4 and query[2] % max(key[2], 1) != 0:
        broken.append(("query's heads to be a multiple of key's", (query[2], key[2])))
    return broken


def _other_layout(inputs: Inputs) -> str | None:
    """Return what to do if the tensors lie as other libraries want them."""
    shapes = inputs.query.shape, inputs.key.shape, inputs.value.shape
    if len(shapes[0]) == 4:
        swapped = [(batch, second, first, width) for batch, first, second, width in shapes]
        # Wrong heads mostly fit as lengths, so that some tensor must have more heads than rows.
        if any(x[2] > x[1] for x in shapes) and not _broken_rules(*swapped):
            return (
                "these would fit as [B, H, M, K], SDPA's layout; call transpose(1, 2) on each of "
                "them and on the result"
            )
    pages, page_size, *others = shapes[1]
    if len(others) > 1 and page_size == getattr(inputs.attn_bias, "page_size", None):
        return (
            "pages lie one after another in a batch of 1; pass key.flatten(0, 1).unsqueeze(0), "
            f"{[1, pages * page_size, *others]}, and value likewise"
        )
    return None


def _check_kind_of_bias(attn_bias: object) -> None:
    if attn_bias is None or isinstance(attn_bias, AttentionBias):
        return
    if isinstance(attn_bias, Tensor):
        check_is_tensor("attn_bias", attn_bias)
    elif isinstance(attn_bias, type) and issubclass(attn_bias, AttentionBias):
        raise TypeError(
            f"{WHO}: expected attn_bias to be a mask, got the class {attn_bias.__name__}; pass an "
            f"instance, such as {attn_bias.__name__}()"
        )
    else:
        raise TypeError(
            f"{WHO}: expected attn_bias to be None, a tensor or a mask, got {attn_bias!r:.60} of "
            f"{type(attn_bias)}; pass for example LowerTriangularMask()"
        )


def _with_plain_numbers(inputs: Inputs) -> Inputs:
    p: float = inputs.p
    if p is not False:  # which is `self.training and p`, and drops nothing
        p = plain_number(WHO, "a number as p, the probability of dropping", p)
    scale, softcap = inputs.scale, inputs.softcap
    if scale is not None:
        scale = plain_number(WHO, "a number or None as scale", scale)
    if softcap is not None:
        softcap = plain_number(WHO, "a number or None as softcap", softcap)
    return replace(inputs, p=p, scale=scale, softcap=softcap)


def _check_numbers(inputs: Inputs) -> None:
    p, scale, softcap = inputs.p, inputs.scale, inputs.softcap
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{WHO}: expected a dropout probability p in [0, 1], got {p}")
    # Not math.isfinite, which Dynamo would not ask of a symbolic number.
    if scale is not None and not -math.inf < scale < math.inf:
        raise ValueError(f"{WHO}: expected a finite scale, got {scale}")
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
