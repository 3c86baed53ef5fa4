"""Attention by relative positions as one would write it in plain torch: a score for every pair.

Source: Dai et al. 2019, arXiv:1901.02860, appendix B, for the shift; EDS-PDF's RelativeAttention.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from attn_continual.relative_attention import RelativeAttention
    from attn_continual.returnn import RelPosCausalSelfAttention, RelPosSelfAttention


def attend_by_shifting(
    layer: RelPosSelfAttention | RelPosCausalSelfAttention,
    x: Tensor,
    encodings: Tensor,
    *,
    is_causal: bool,
) -> Tensor:
    """Return what a layer with all of Transformer-XL's parameters gives for [N, M, in].

    encodings: of the distances from -(M - 1) to M - 1, [2 M - 1, in], or if causal to 0, [M, in].
    """
    assert layer.linear_pos is not None  # noqa: S101
    query, key, value = (rows.transpose(1, 2) for rows in layer.forward_qkv(x))  # [N, H, M, ...]
    table = layer.linear_pos(encodings).unflatten(1, (layer.num_heads.size, -1))  # [Z, H, dk]
    by_content = (query + _by_head(layer.pos_bias_u)) @ key.mT
    by_distance = (query + _by_head(layer.pos_bias_v)) @ table.permute(1, 2, 0)  # [N, H, M, Z]
    scores = (by_content + _shift(by_distance)) * query.shape[-1] ** -0.5
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return layer.project((scores.softmax(-1) @ value).transpose(1, 2))


def _by_head(bias: Tensor | None) -> Tensor:
    assert bias is not None  # noqa: S101
    return bias[:, None]


def _shift(by_distance: Tensor) -> Tensor:
    """Move row i of [N, H, M, Z] left by M - 1 - i, and return its first M columns."""
    samples, heads, rows, columns = by_distance.shape
    padded = torch.cat([by_distance.new_zeros(samples, heads, rows, 1), by_distance], dim=3)
    shifted = padded.view(samples, heads, columns + 1, rows)[:, :, 1:]
    return shifted.reshape(samples, heads, rows, columns)[..., :rows]


def attend_by_looking_up(
    layer: RelativeAttention, x: Tensor, relative_positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the outputs [n, M, size] and logits [n, M, M, h] of a layer with all three terms.

    Term by term as EDS-PDF defines them, heads last.
    Shapes: x [n, M, size]; relative_positions int64 [n, M, M, coordinates].
    """
    embedding = layer.position_embedding
    assert embedding is not None  # noqa: S101
    coordinates, heads, num_rows = layer.n_coordinates, layer.n_heads, len(embedding)
    query, key = (
        projection(x).unflatten(2, (heads, -1))
        for projection in (layer.content_query_proj, layer.content_key_proj)
    )
    query_parts, key_parts = (rows.unflatten(3, (coordinates, -1)) for rows in (query, key))
    key_table, query_table = (
        projection(embedding).unflatten(1, (coordinates, heads, -1))
        for projection in (layer.position_key_proj, layer.position_query_proj)
    )
    rows = (relative_positions + num_rows // 2).clamp(0, num_rows - 1)
    rows = rows[:, :, :, None].expand(-1, -1, -1, heads, -1)
    by_query = torch.einsum("nihxd,zxhd->nizhx", query_parts, key_table)
    by_key = torch.einsum("njhxd,zxhd->nzjhx", key_parts, query_table)
    terms = [
        torch.einsum("nihd,njhd->nijh", query, key) / math.sqrt(layer.head_size),
        by_query.gather(2, rows).sum(-1) / math.sqrt(layer.head_size),
        by_key.gather(1, rows).sum(-1) / math.sqrt(layer.head_size),
    ]
    logits = (terms[0] + terms[1] + terms[2]) / math.sqrt(len(terms))
    if layer.bias is not None:
        logits = logits + layer.bias
    value = layer.content_value_proj(x).unflatten(2, (heads, -1))
    pooled = torch.einsum("nijh,njhd->nihd", logits.softmax(2), value)
    return pooled.flatten(2), logits
