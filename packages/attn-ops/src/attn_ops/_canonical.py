"""Views checked inputs as the one layout that operators read, and their mask as one `MaskSpec`.

A mask that does not fit the inputs is refused here, but for the numbers in its tensors, which the
core alone reads.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from attn_ops import autocast
from attn_ops._inputs import WHO, Inputs, check_is_tensor
from attn_ops._lower import lower
from attn_ops.fmha.attn_bias import AttentionBias
from attn_ops.mask import Dropout, MaskSpec, Relative

_BIAS_LAYOUTS = {3: "[B, Mq, Mkv]", 4: "[B, H, Mq, Mkv]", 5: "[B, G, H, Mq, Mkv]"}


class CanonicalInputs(NamedTuple):
    """What operators read: views, unless strides make a copy unavoidable."""

    query: Tensor
    """[B, Mq, Hq, K]"""
    key: Tensor
    """[B, Mkv, Hkv, K], with Hq a multiple of Hkv"""
    value: Tensor
    """[B, Mkv, Hkv, Kv]"""
    mask: MaskSpec


def canonical(
    inputs: Inputs, dropout: Dropout | None = None, *, merge_repeats: bool = True
) -> CanonicalInputs:
    """Return [B, M, H, K] views of checked inputs, and their mask, checked against them.

    Keys and values that repeat over H in the 5-D layout (stride 0) become their G distinct heads,
    and axes along which a bias repeats get extent 1, unless `merge_repeats` is off: their gradients
    then have an entry for every index.
    Raises: TypeError or ValueError if a tensor of the mask does not fit the inputs.
    """
    mask = _canonical_mask(inputs, dropout or Dropout(), merge_repeats)
    views = four_axes(inputs.query, inputs.key, inputs.value, merge_repeats=merge_repeats)
    return CanonicalInputs(*views, mask)


def four_axes(
    query: Tensor, key: Tensor, value: Tensor, *, merge_repeats: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the [B, M, H, K] views that `canonical` describes, of tensors that fit each other."""
    if query.dim() == 3:
        return query.unsqueeze(2), key.unsqueeze(2), value.unsqueeze(2)
    if query.dim() == 4:
        return query, key, value
    if merge_repeats and _repeats(key, 3) and _repeats(value, 3):
        return query.flatten(2, 3), key.select(3, 0), value.select(3, 0)
    return query.flatten(2, 3), key.flatten(2, 3), value.flatten(2, 3)


def restore_layout(out: Tensor, like: Tensor) -> Tensor:
    """View an operator's [B, M, H, K] in the layout of `like`, the user's tensor."""
    if like.dim() == 3:
        return out.squeeze(2)
    if like.dim() == 5:
        return out.reshape(*like.shape[:-1], out.shape[-1])
    return out


def restore_lse_layout(lse: Tensor, query: Tensor) -> Tensor:
    """View an operator's LSE [B, Hq, Mq] as that of a 5-D query, [B, G, H, Mq]; else as it is."""
    return lse.unflatten(1, query.shape[2:4]) if query.dim() == 5 else lse


def _canonical_mask(inputs: Inputs, dropout: Dropout, merge_repeats: bool) -> MaskSpec:
    attn_bias = inputs.attn_bias
    if attn_bias is None and inputs.sink is None and inputs.softcap is None:
        return MaskSpec(dropout=dropout)
    mask = lower(attn_bias)  # pyright: ignore[reportArgumentType]  an operator has taken it
    bias = attn_bias if isinstance(attn_bias, Tensor) else mask.bias
    slopes, table, sink = mask.relative.slopes, mask.relative.table, inputs.sink
    check_batch(inputs, mask)
    _check_rows(inputs)
    _check_places(inputs, mask, bias)
    return MaskSpec(
        band=mask.band,
        bias=None if bias is None else _canonical_bias(inputs, bias, merge_repeats),
        dropout=dropout,
        sequences=mask.sequences,
        pages=mask.pages,
        blocks=mask.blocks,
        relative=Relative(
            None if slopes is None else _per_head("slopes", slopes, inputs),
            None if table is None else _per_head("table", table, inputs, trailing=1),
        ),
        sink=None if sink is None else _per_head("sink", sink, inputs),
        softcap=inputs.softcap or 0.0,
    )


def check_batch(inputs: Inputs, mask: MaskSpec) -> None:
    """Raise ValueError unless packed sequences are a batch of 1."""
    batch = inputs.query.shape[0]
    if mask.sequences is None or batch == 1:
        return
    raise ValueError(
        f"{WHO}: Expected batch_size=1 when using block-diagonal bias, got {batch} with "
        f"{type(inputs.attn_bias).__name__}; concatenate the batch along M\n"
        f"  query.shape: {list(inputs.query.shape)}\n"
        f"  key.shape  : {list(inputs.key.shape)}\n"
        f"  value.shape: {list(inputs.value.shape)}"
    )


def _check_rows(inputs: Inputs) -> None:
    if isinstance(inputs.attn_bias, AttentionBias):
        inputs.attn_bias.check_fits(inputs.query.shape[1], inputs.key.shape[1])


def _check_places(inputs: Inputs, mask: MaskSpec, bias: Tensor | None) -> None:
    """Raise unless the mask's tensors lie where the query does."""
    tensors = {
        "attn_bias": bias,
        "slopes of attn_bias": mask.relative.slopes,
        "table of attn_bias": mask.relative.table,
        "sink": inputs.sink,
    }
    if mask.sequences is not None:
        tensors["query lengths of attn_bias"] = mask.sequences.q_start
        tensors["key starts of attn_bias"] = mask.sequences.k_start
        tensors["key lengths of attn_bias"] = mask.sequences.k_len
    if mask.pages is not None:
        tensors["block_tables of attn_bias"] = mask.pages.block_table
    if mask.blocks is not None:
        tensors["offsets of attn_bias"] = mask.blocks.offsets
        tensors["indices of attn_bias"] = mask.blocks.indices
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        check_is_tensor(name, tensor)
        if tensor.device != inputs.query.device:
            raise ValueError(
                f"{WHO}: Attention bias and Query/Key/Value should be on the same device: expected "
                f"{name} on query's device {inputs.query.device}, got {tensor.device}; move it "
                "with to()"
            )


def _canonical_bias(inputs: Inputs, bias: Tensor, merge_repeats: bool) -> Tensor:
    """View a bias as [B or 1, Hq or 1, Mq or 1, Mkv or 1]."""
    query, key = inputs.query, inputs.key
    heads = query.shape[2:-1]
    full = (query.shape[0], *heads, query.shape[1], key.shape[1])
    # Not `in` a tuple, neither here nor below: Dynamo would compare no symbolic size.
    if bias.dim() != len(full) or any(
        size != 1 and size != expected  # noqa: PLR1714
        for size, expected in zip(bias.shape, full, strict=True)
    ):
        raise ValueError(
            f"{WHO}: expected attn_bias {_BIAS_LAYOUTS[query.dim()]} = {list(full)}, all "
            f"{len(full)} axes, where any extent may be 1, got {list(bias.shape)}"
            f"{_advice_on_axes(bias.shape, full, _BIAS_LAYOUTS[query.dim()])}"
        )
    bias = _readable("attn_bias", bias, query, torch.bool)
    if merge_repeats:  # before any view of it is made, which is no leaf
        bias = _unrepeat(bias)
    if query.dim() == 3:
        return bias.unsqueeze(1)
    return _flatten_bias_heads(bias, *heads) if query.dim() == 5 else bias


def _advice_on_axes(shape: Sequence[int], full: Sequence[int], layout: str) -> str:
    """Say how a bias that lacks axes would fit, by what its own axes may be; the last are keys."""
    names = layout.strip("[]").split(", ")
    ways = []
    for axes in combinations(range(len(full)), len(shape)):
        ends_with_keys = len(axes) > 0 and axes[-1] == len(full) - 1
        fits = all(size in (1, full[axis]) for size, axis in zip(shape, axes, strict=True))
        if ends_with_keys and fits and len(shape) < len(full):
            index = ", ".join(":" if axis in axes else "None" for axis in range(len(full)))
            own = ", ".join(names[axis] for axis in axes)
            ways.append(f"bias[{index}] if its axes are [{own}]")
    return f"; pass {', or '.join(ways)}" if ways else ""


def _per_head(name: str, tensor: Tensor, inputs: Inputs, trailing: int = 0) -> Tensor:
    """View a parameter of each head as [Hq, ...], with `trailing` axes of its own."""
    query = inputs.query
    heads = query.shape[2:-1] or (1,)
    flat = (heads[0] * heads[1],) if len(heads) == 2 else tuple(heads)
    leading = tuple(tensor.shape[: tensor.dim() - trailing])
    if leading != flat and leading != tuple(heads):
        wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys((flat, tuple(heads))))
        raise ValueError(
            f"{WHO}: expected {name} with one entry for each head of query, {wanted}"
            f"{' and one axis more' if trailing else ''}, got {list(tensor.shape)}"
        )
    tensor = _readable(name, tensor, query)
    return tensor.flatten(0, 1) if len(leading) == 2 else tensor


def _readable(name: str, tensor: Tensor, query: Tensor, *others: torch.dtype) -> Tensor:
    """Return a tensor of the mask in a dtype that kernels read, cast only by autocast."""
    if autocast.is_enabled(query):
        tensor = autocast.cast_parameters(tensor, query.dtype)
    if tensor.dtype in (query.dtype, torch.float32, *others):
        return tensor
    allowed = [f"query's dtype {query.dtype}"]
    if query.dtype != torch.float32:
        allowed.append("torch.float32")
    allowed += [f"{dtype} (True keeps a key)" for dtype in others]
    advice = ""
    if torch.bool in others and not tensor.dtype.is_floating_point:
        advice = f"; pass {name}.bool() if it is 1 for a key to keep, or {name}.float() to add it"
    raise ValueError(
        f"{WHO}: expected {name} of {' or '.join(allowed)}, got {tensor.dtype}{advice}"
    )


def _repeats(tensor: Tensor, axis: int) -> bool:
    """Return whether every index of `axis` reads the same memory, so that one stands for all.

    Not for a leaf that wants a gradient: its own gradient has an entry for every index. Where none
    is recorded, every view of such a leaf counts as one.
    """
    is_leaf = tensor.requires_grad and tensor.is_leaf and torch.is_grad_enabled()
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
