"""Relative attention as EDS-PDF defines it, and DeBERTa's variant, one vector for each pair."""

import math

import torch


def grouped(x, weight, bias):
    """Project each group of features [..., groups * width] by itself."""
    parts = x.unflatten(-1, (weight.shape[0], -1))
    columns = [parts[..., g, :] @ weight[g] + bias[g] for g in range(weight.shape[0])]
    return torch.cat(columns, dim=-1)


def attend(
    parameters,
    content_queries,
    content_keys,
    content_values=None,
    mask=None,
    relative_positions=None,
    no_position_mask=None,
    base_attn=None,
    *,
    heads,
    extra_heads=0,
    coordinates=1,
    mode=("c2c", "p2c", "c2p"),
    p2c_index="same",
):
    """Return (outputs, or None without values, and logits [n, q, k, heads + extra_heads]).

    parameters: those of the layer, by name. Every pair of query and key gets its own vectors of
    position, [n, q, k, coordinates, h, d / coordinates].
    """
    total_heads = heads + extra_heads

    def linear(name, x):
        return x @ parameters[f"{name}.weight"].mT + parameters[f"{name}.bias"]

    queries = linear("content_query_proj", content_queries).unflatten(-1, (total_heads, -1))
    keys = linear("content_key_proj", content_keys).unflatten(-1, (total_heads, -1))
    terms = []
    if "c2c" in mode:
        terms.append(torch.einsum("nihd,njhd->nijh", queries, keys))
    if relative_positions is not None:
        count = parameters["position_embedding"].shape[0]
        rows = (count // 2 + relative_positions).clamp(0, count - 1)
        rows = rows.expand(queries.shape[0], -1, -1, -1)
        if "c2p" in mode:
            pairs = of_pairs(parameters, "position_key_proj", rows, total_heads)
            of_keys = torch.einsum("nichd,nijchd->nijh", by_coordinate(queries, coordinates), pairs)
            terms.append(without(no_position_mask, of_keys))
        if "p2c" in mode:
            other = rows.transpose(1, 2) if p2c_index == "transposed" else rows
            pairs = of_pairs(parameters, "position_query_proj", other, total_heads)
            of_queries = torch.einsum("njchd,nijchd->nijh", by_coordinate(keys, coordinates), pairs)
            terms.append(without(no_position_mask, of_queries))
    logits = sum(terms) / math.sqrt(queries.shape[-1]) / math.sqrt(len(terms))
    if base_attn is not None:
        logits = logits + base_attn
    if "bias" in parameters:
        logits = logits + parameters["bias"]
    if content_values is None:
        return None, logits
    values = linear("content_value_proj", content_values)
    return pool(logits[..., extra_heads:], values, mask), logits


def of_pairs(parameters, name, rows, heads):
    """Return the projected position of each pair, [n, q, k, coordinates, h, d / coordinates]."""
    weight, bias = (parameters[f"{name}.{kind}"] for kind in ("weight", "bias"))
    projected = grouped(parameters["position_embedding"], weight, bias)
    by_row = projected.unflatten(-1, (rows.shape[-1], heads, -1))
    return torch.stack([by_row[rows[..., c], c] for c in range(rows.shape[-1])], dim=3)


def by_coordinate(x, coordinates):
    """View [n, rows, h, d] as [n, rows, coordinates, h, d / coordinates]."""
    return x.unflatten(-1, (coordinates, -1)).transpose(2, 3)


def without(no_position_mask, term):
    """Return a term [n, q, k, h], 0 where the mask [n, q, k] says so."""
    if no_position_mask is None:
        return term
    return torch.where(no_position_mask[..., None], 0.0, term)


def pool(logits, values, mask):
    """Return softmax over keys times values [n, k, size]; 0 for queries without keys."""
    keep = torch.ones_like(logits, dtype=torch.bool)
    if mask is not None:
        shapes = {2: (slice(None), None, slice(None), None), 3: (..., None), 4: (...,)}
        keep = mask[shapes[mask.dim()]].expand(logits.shape)
    weights = logits.masked_fill(~keep, -torch.inf).softmax(2)
    weights = torch.where(keep, weights, 0.0)
    by_head = values.unflatten(-1, (logits.shape[-1], -1))
    return torch.einsum("nijh,njhd->nihd", weights, by_head).flatten(2)
