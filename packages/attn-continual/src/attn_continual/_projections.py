"""The projections and mask conventions of `torch.nn.MultiheadAttention`, for its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, multi_head_attention_forward

from attn_continual._step_checks import check_dtype
from attn_ops import memory_efficient_attention

if TYPE_CHECKING:
    from collections.abc import Sequence


class Projected(NamedTuple):
    """Queries, keys and values by head, [N, T, H, head_dim]."""

    query: Tensor
    key: Tensor
    value: Tensor


def torch_settings(mha: nn.MultiheadAttention) -> dict[str, Any]:
    """Return the arguments of torch's constructor that make a layer like this one."""
    weight = mha.out_proj.weight
    return {
        "embed_dim": mha.embed_dim,
        "num_heads": mha.num_heads,
        "dropout": mha.dropout,
        "bias": mha.in_proj_bias is not None,
        "add_bias_kv": mha.bias_k is not None,
        "add_zero_attn": mha.add_zero_attn,
        "kdim": mha.kdim,
        "vdim": mha.vdim,
        "batch_first": mha.batch_first,
        "device": weight.device,
        "dtype": weight.dtype,
    }


def copy_weights(source: nn.MultiheadAttention, target: nn.MultiheadAttention) -> None:
    """Give `target` the weights of `source`, of the same settings, and whether they are trained.

    What a parametrization computes becomes a weight.
    Raises: ValueError if `source` has further parameters, as of an adapter.
    """
    own = dict(target.named_parameters())
    others = [
        name
        for name, _ in source.named_parameters()
        if name not in own and "parametrizations." not in name
    ]
    if others:
        raise ValueError(
            "conversion: expected attention with the parameters of torch's layer, got also "
            f"{', '.join(others)}; merge what they are of into the weights first"
        )
    for name, parameter in own.items():
        module, _, attribute = name.rpartition(".")
        weight = getattr(source.get_submodule(module), attribute)
        with torch.no_grad():
            parameter.copy_(weight)
        parameter.requires_grad_(weight.requires_grad)


def project(
    mha: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor | None
) -> Projected:
    """Project [N, T, features] with the layer's weights; `value` defaults to `key`.

    Raises: ValueError if features are not as many as the weights take, or of another dtype.
    """
    value = key if value is None else value
    check_features(mha, query, key, value)
    heads = (mha.num_heads, mha.head_dim)
    packed, bias = mha.in_proj_weight, mha.in_proj_bias  # once: torch looks for them anew each time
    if packed is not None and query is key is value:
        rows = linear(query, packed, bias)
        q, k, v = rows.view(*query.shape[:-1], 3, *heads).unbind(-3)
        return Projected(q, k, v)
    if packed is not None:
        weights = packed.chunk(3)
    else:
        weights = (mha.q_proj_weight, mha.k_proj_weight, mha.v_proj_weight)
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    return Projected(
        *(
            linear(x, weight, bias).unflatten(-1, heads)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
    )


PackedWeights = tuple[Tensor, "Tensor | None", Tensor, "Tensor | None"]
"""in_proj_weight [3 E, E], its bias, out_proj.weight [E, E], its bias."""


def packed_weights(mha: nn.MultiheadAttention) -> PackedWeights | None:
    """Return the weights, or None if there are others than these, or they do not lie in rows.

    Looked up in torch's own tables: the attributes of modules take longer than a small step. What
    a parametrization computes is not there.
    """
    own, out = mha._parameters, mha.out_proj._parameters  # noqa: SLF001
    try:
        in_weight, in_bias = own["in_proj_weight"], own["in_proj_bias"]
        out_weight, out_bias = out["weight"], out["bias"]
    except KeyError:
        return None
    if in_weight is None or out_weight is None:
        return None
    packed = in_weight, in_bias, out_weight, out_bias
    return packed if all(x is None or x.is_contiguous() for x in packed) else None


def check_features(mha: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise ValueError unless features are as many, and of the dtype, that the weights take."""
    weight = mha.in_proj_weight
    weight = mha.q_proj_weight if weight is None else weight
    if not query.dtype == key.dtype == value.dtype == weight.dtype:
        for name, x in (("query", query), ("key", key), ("value", value)):
            check_dtype(name, x, weight)
    given = (query.shape[-1], key.shape[-1], value.shape[-1])
    if given == (mha.embed_dim, mha.kdim, mha.vdim):
        return
    widths = {"query": mha.embed_dim, "key": mha.kdim, "value": mha.vdim}
    for (name, width), x in zip(widths.items(), (query, key, value), strict=True):
        if x.shape[-1] != width:
            raise ValueError(
                f"{name}: expected {width} features, got {list(x.shape)}; key defaults to query "
                "and value to key, which takes equal embed_dim, kdim and vdim"
            )


def check_sequences(
    mha: nn.MultiheadAttention, rows: Sequence[Tensor], attn_mask: Tensor | None
) -> None:
    """Raise ValueError unless queries, keys and values [N, T, features] and their mask fit."""
    query, key, value = rows
    check_features(mha, query, key, value)
    streams, length = query.shape[:2]
    if key.shape[0] != streams or key.shape[:2] != value.shape[:2]:
        raise ValueError(
            f"attention: expected keys and values of {streams} streams, as many of each, got rows "
            f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)}"
        )
    pairs, heads = (length, key.shape[1]), streams * mha.num_heads
    if attn_mask is not None and attn_mask.shape not in (pairs, (heads, *pairs)):
        raise ValueError(
            f"attn_mask: expected {list(pairs)}, of queries and keys, or [{heads}, ...] with "
            f"streams * heads in front, got {list(attn_mask.shape)}"
        )


def torch_padding(key_padding_mask: Tensor | None, *, single: bool = False) -> Tensor | None:
    """Return torch's key padding mask of steps as bool [N, T], True hiding a key.

    single: the mask is [N], of one step.
    Raises: ValueError if it is not bool, or has other axes.
    """
    if key_padding_mask is None:
        return None
    axes = ("N",) if single else ("N", "T")
    if key_padding_mask.dtype != torch.bool or key_padding_mask.dim() != len(axes):
        raise ValueError(
            f"key_padding_mask: expected a bool tensor [{', '.join(axes)}], True hiding a key, got "
            f"{key_padding_mask.dtype} {list(key_padding_mask.shape)}"
        )
    return key_padding_mask[:, None] if single else key_padding_mask


def torch_mask_by_head(attn_mask: Tensor, length: int, num_heads: int) -> Tensor:
    """Return torch's mask of `length` steps by stream and head: [N or 1, num_heads or 1, L, L].

    Raises: ValueError if the mask is neither [L, L] nor [N * num_heads, L, L], or of integers.
    """
    is_square = attn_mask.dim() in (2, 3) and attn_mask.shape[-2:] == (length, length)
    is_mask = attn_mask.dtype == torch.bool or attn_mask.is_floating_point()
    if not is_square or not is_mask or (attn_mask.dim() == 3 and attn_mask.shape[0] % num_heads):
        raise ValueError(
            f"attn_mask: expected [{length}, {length}], that of all steps, or with N * num_heads "
            f"in front, bool or floating point, got {attn_mask.dtype} {list(attn_mask.shape)}"
        )
    return (
        attn_mask[None, None] if attn_mask.dim() == 2 else attn_mask.unflatten(0, (-1, num_heads))
    )


def torch_mask_row(attn_mask: Tensor, query_index: int, length: int, num_heads: int) -> Tensor:
    """Return a query's row of torch's mask of a window, as what is added: [N or 1, H or 1, L].

    Raises: ValueError if the mask is neither [L, L] nor [N * num_heads, L, L], or of integers.
    """
    row = torch_mask_by_head(attn_mask, length, num_heads)[:, :, query_index]
    if row.dtype == torch.bool:
        row = torch.zeros(row.shape, device=row.device).masked_fill(row, -torch.inf)
    return row


def torch_bias(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, length: int, num_heads: int
) -> Tensor | None:
    """Return torch's masks of sequences of `length` steps as one bias for `attend_rows`.

    Each may be bool, True hiding a key, or what is added to scores, whatever the other is.
    Raises: ValueError if the attn_mask is neither [T, T] nor [N * num_heads, T, T].
    """
    masks: list[Tensor] = []
    if attn_mask is not None:
        masks.append(torch_mask_by_head(attn_mask, length, num_heads))
    if key_padding_mask is not None:
        masks.append(key_padding_mask[:, None, None])
    bias: Tensor | None = None
    for mask in sorted(masks, key=lambda mask: mask.dtype == torch.bool):  # what is added first
        if mask.dtype == torch.bool:
            bias = where_kept(bias, ~mask)
        else:
            bias = mask if bias is None else bias + mask
    return bias


def where_kept(bias: Tensor | None, keep: Tensor) -> Tensor:
    """Return a bias that besides leaves out what is False in `keep`, broadcasting.

    bias: bool, True is seen; or what is added to scores.
    """
    if bias is None:
        return keep
    return bias & keep if bias.dtype == torch.bool else bias.masked_fill(~keep, -torch.inf)


def attend_rows(
    mha: nn.MultiheadAttention, rows: Tensor, queries: slice, bias: Tensor | None = None
) -> Tensor:
    """Return the outputs of some `queries` among the rows [N, T, E] that attend to all of them.

    bias: [N or 1, H or 1, T or 1, T]: bool, True is seen; or what is added to scores. A query
        that sees no key gives 0 before the output projection.
    """
    query = rows if queries == slice(None) else rows[:, queries]
    if bias is not None and bias.shape[2] > 1:
        bias = bias[:, :, queries]
    projected = project(mha, query, rows, rows)
    dropout = mha.dropout if mha.training else 0.0
    attended = memory_efficient_attention(*projected, bias, dropout).flatten(2)
    # Not by calling out_proj: neither do torch's layers nor steps, so that its hooks never run.
    return linear(attended, mha.out_proj.weight, mha.out_proj.bias)


def check_causal_hint(attn_mask: Tensor | None, is_causal: bool) -> None:
    """Raise ValueError if a mask that is not there is said to be causal."""
    if is_causal and attn_mask is None:
        raise ValueError(
            "is_causal: expected an attn_mask with it, which it says of that it is causal, got None"
        )


def torch_attention(
    mha: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_padding_mask: Tensor | None,
    need_weights: bool,
    attn_mask: Tensor | None,
    average_attn_weights: bool,
    is_causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """Run torch's own attention on [N, T, features] rows: it can return the weights."""
    is_packed = mha.in_proj_weight is not None
    out, weights = multi_head_attention_forward(
        query.transpose(0, 1),
        key.transpose(0, 1),
        value.transpose(0, 1),
        mha.embed_dim,
        mha.num_heads,
        mha.in_proj_weight,
        mha.in_proj_bias,
        mha.bias_k,
        mha.bias_v,
        mha.add_zero_attn,
        mha.dropout,
        mha.out_proj.weight,
        mha.out_proj.bias,
        training=mha.training,
        key_padding_mask=key_padding_mask,
        need_weights=need_weights,
        attn_mask=attn_mask,
        use_separate_proj_weight=not is_packed,
        q_proj_weight=mha.q_proj_weight,
        k_proj_weight=mha.k_proj_weight,
        v_proj_weight=mha.v_proj_weight,
        average_attn_weights=average_attn_weights,
        is_causal=is_causal,
    )
    return out.transpose(0, 1), weights
