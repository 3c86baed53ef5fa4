"""Calls with tagged tensors: each calls a layer with torch tensors, and tags what it returns.

Batch dims are those that the call does not name, in the order in which they lie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attn_continual.returnn.dim import Dim, single_step_dim
from attn_continual.returnn.dot_attention import dot_attention
from attn_continual.returnn.tagged_tensor import TaggedTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attn_continual.returnn.causal_self_attention import (
        CausalSelfAttention,
        CausalSelfAttentionState,
    )
    from attn_continual.returnn.cross_attention import CrossAttention
    from attn_continual.returnn.headed_attention import HeadedAttention
    from attn_continual.returnn.self_attention import SelfAttention, SelfAttentionBase


def self_attention(layer: SelfAttention, source: TaggedTensor, axis: Any) -> TaggedTensor:  # noqa: ANN401  checked
    """Run `SelfAttention` along a dim."""
    rows, batch = _rows(layer, source, axis, layer.in_dim)
    out = layer(rows, lengths=lengths_along(axis, batch, rows.shape[:-2]))
    return _tag(out, [*batch, axis, layer.out_dim])


def causal_self_attention(
    layer: CausalSelfAttention,
    source: TaggedTensor,
    axis: Any,  # noqa: ANN401  checked
    state: CausalSelfAttentionState | None,
) -> tuple[TaggedTensor, CausalSelfAttentionState]:
    """Run `CausalSelfAttention` along a dim, or for a single step."""
    rows, batch = _rows(layer, source, axis, layer.in_dim)
    is_step = axis is single_step_dim
    sizes = rows.shape[: len(batch)]
    lengths = None if is_step else lengths_along(axis, batch, sizes)
    held = None if state is None else _untagged_state(layer, state, batch, sizes)
    out, new = layer(rows, single_step_dim if is_step else -2, state=held, lengths=lengths)
    dims = [*batch, layer.out_dim] if is_step else [*batch, axis, layer.out_dim]
    return _tag(out, dims), tagged_state(layer, new, batch)


def forward_qkv(
    layer: SelfAttentionBase, source: TaggedTensor
) -> tuple[TaggedTensor, TaggedTensor, TaggedTensor]:
    """Run `SelfAttentionBase.forward_qkv`."""
    rows, batch = _rows(layer, source, None, layer.in_dim)
    query, key, value = layer.forward_qkv(rows)
    width, heads = layer.key_dim_per_head, layer.num_heads
    value_width = layer.value_dim_per_head
    return (
        _tag(query, [*batch, heads, width]),
        _tag(key, [*batch, heads, width]),
        _tag(value, [*batch, heads, value_width]),
    )


def attention(
    layer: HeadedAttention,
    query: TaggedTensor,
    key: TaggedTensor,
    value: TaggedTensor,
    axis: Any,  # noqa: ANN401  dot_attention checks it
) -> TaggedTensor:
    """Attend along a dim of keys and values, and project."""
    attended = dot_attention(
        query,
        key,
        value,
        key_dim=layer.key_dim_per_head,
        axis=axis,
        att_dropout=layer.active_dropout,
        att_dropout_broadcast=layer.att_dropout_broadcast,
    )
    per_head = [layer.num_heads, layer.value_dim_per_head]
    batch = attended.remaining_dims(per_head)
    rows = attended.copy_compatible_to_dims_raw([*batch, *per_head])
    return _tag(layer.project(rows), [*batch, layer.out_dim])


def cross_attention_keys(
    layer: CrossAttention, source: TaggedTensor
) -> tuple[TaggedTensor, TaggedTensor]:
    """Run `CrossAttention.forward_kv`."""
    rows, batch = _rows(layer, source, None, layer.encoder_dim)
    key, value = layer.forward_kv(rows)
    heads = layer.num_heads
    return (
        _tag(key, [*batch, heads, layer.key_dim_per_head]),
        _tag(value, [*batch, heads, layer.value_dim_per_head]),
    )


def cross_attention_query(layer: CrossAttention, source: TaggedTensor) -> TaggedTensor:
    """Run `CrossAttention.forward_query`."""
    rows, batch = _rows(layer, source, None, layer.query_in_dim)
    return _tag(layer.forward_query(rows), [*batch, layer.num_heads, layer.key_dim_per_head])


def tagged_state(
    layer: CausalSelfAttention, state: CausalSelfAttentionState, batch_dims: Sequence[int | Dim]
) -> CausalSelfAttentionState:
    """Tag a state; ints among the batch dims get new ones."""
    batch = [dim if isinstance(dim, Dim) else Dim(dim, name="batch") for dim in batch_dims]
    position = state.accum_axis
    lengths = _tag(position, batch) if isinstance(position, Tensor) else None
    slots = state.k_accum.shape[len(batch)]
    axis = Dim(slots if lengths is None else lengths, name="accumulated")
    heads = layer.num_heads
    return type(state)(
        _tag(state.k_accum, [*batch, axis, heads, layer.key_dim_per_head]),
        _tag(state.v_accum, [*batch, axis, heads, layer.value_dim_per_head]),
        axis,
    )


def lengths_along(axis: Dim, batch: Sequence[Dim], sizes: Sequence[int]) -> Tensor | None:
    """Return the lengths of sequences along a dim, [*batch], or None if it has none."""
    if axis.lengths is None:
        return None
    return axis.lengths.copy_compatible_to_dims_raw(batch).expand(tuple(sizes))


def _untagged_state(
    layer: CausalSelfAttention,
    state: CausalSelfAttentionState,
    batch: Sequence[Dim],
    sizes: Sequence[int],
) -> CausalSelfAttentionState:
    """View a tagged state as one of torch tensors, which one of no batch dims may be already."""
    if not isinstance(state.k_accum, TaggedTensor):
        return state
    axis = state.accum_axis
    widths = (layer.key_dim_per_head, layer.value_dim_per_head)
    key, value = (
        x.copy_compatible_to_dims_raw([*batch, axis, layer.num_heads, width])
        for x, width in zip(state[:2], widths, strict=True)
    )
    key, value = (x.expand(*sizes, *x.shape[len(batch) :]) for x in (key, value))
    lengths = lengths_along(axis, batch, sizes)
    return type(state)(key, value, key.shape[len(batch)] if lengths is None else lengths)


def _rows(
    layer: torch.nn.Module,
    source: TaggedTensor,
    axis: Any,  # noqa: ANN401  checked
    features: Dim,
) -> tuple[Tensor, list[Dim]]:
    """View a source as [*batch, T, features], without T if it has no axis, and its batch dims."""
    named = axis is not None and axis is not single_step_dim
    if named and not isinstance(axis, Dim):
        raise TypeError(
            f"{type(layer).__name__}: expected axis, a Dim, with a tagged source, got {axis!r}"
        )
    last = [axis, features] if named else [features]
    batch = source.remaining_dims(last)
    return source.copy_compatible_to_dims_raw([*batch, *last]), batch


def _tag(raw: Tensor, dims: Sequence[Dim]) -> TaggedTensor:
    return TaggedTensor("attention", dims, raw_tensor=raw, feature_dim=dims[-1] if dims else None)
