"""`attend_by_position`: attention whose scores know how far each key is from each query."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from attn_ops import autocast
from attn_ops.dropout import draw_seed
from attn_ops.mask import UNBOUNDED
from attn_ops.operands import with_unit_stride, working_dtype
from attn_ops.refusals import refusal_of_core
from attn_ops.scalars import plain_number

if TYPE_CHECKING:
    from torch import Tensor

_WHO = "attend_by_position"


def attend_by_position(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_table: Tensor | None = None,
    *,
    position_query: Tensor | None = None,
    query_table: Tensor | None = None,
    position_key: Tensor | None = None,
    key_table_rows: Tensor | None = None,
    query_table_rows: Tensor | None = None,
    zero_row: int | None = None,
    offset: int = 0,
    window_left: int | None = None,
    window_right: int | None = None,
    attn_bias: Tensor | None = None,
    keep: Tensor | None = None,
    p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attend with scores of content and of relative positions, exactly.

    Query i stands at place i + offset among the keys. With d = j - (i + offset) the distance of key
    j from it and r = clamp(d + zero_row, 0, Z - 1), the result is the softmax over the keys of

        attn_bias_ij + scale * (
            query_i . key_j + position_query_i . key_table[r] + position_key_j . query_table[r]),

    applied to the values. A table that is None leaves its term out. Transformer-XL, with its biases
    u and v: `query` is q + u, `position_query` q + v, `key_table` the projected encodings; Shaw et
    al.: the table of keys alone; DeBERTa: both tables, with the buckets of distances as their rows.

    Shapes: query [B, Mq, H, K]; key [B, Mkv, Hkv, K]; value [B, Mkv, Hkv, Kv]; key_table [H or 1,
        Z, Kp]; position_query [B, Mq, H, Kp], default `query`; query_table [H or 1, Z, Kp'];
        position_key [B, Mkv, H, Kp'], default `key`; result [B, Mq, H, Kv].
    Dtypes: query, key and value alike; the rest any floating point: scores of positions are
        computed in float32, in float64 for such queries. Autocast casts the three as in attn_ops.
    Cost: each table takes about as many multiplications as query . key, and no memory of Mq x Mkv
        in either direction; the gradients of tables are summed in their own size.
    key_table_rows, query_table_rows: int32 [D], the row of the table that each of D distances
        reads, ascending; then r is rows[clamp(d + zero_row, 0, D - 1)]. Default: row by row.
    zero_row: the row of both tables, or the place in their rows, for a distance of 0; default the
        middle, D // 2 or Z // 2, where both have as many. The first and the last stand for all
        distances beyond them.
    window_left, window_right: how many keys before and after its own place a query sees; None: all.
        Causal attention has a `window_right` of 0.
    attn_bias: [B or 1, H or 1, Mq or 1, Mkv or 1], floating point; added.
    keep: bool, of the same shapes: True keeps a key. NaN in keys that nobody sees, and in their
        `position_key`, reaches nothing. Beside an `attn_bias` the two are made one tensor.
    p: the probability of dropping an attention weight; drawn from torch's CPU generator. A CUDA
        graph cannot capture the draw.
    scale: default K ** -0.5.
    Numerics: a query that sees no key gives 0, and gradients of 0; the same bits on every run
        and for any number of threads.
    Differentiable once in every floating-point tensor.
    Raises: ValueError if there is no table, or a tensor does not fit, or has no table, or tables
        differ and nothing says where distance 0 is; TypeError for a distance that is no int, or a
        scale or p that is no number.
    Source: Dai et al. 2019, arXiv:1901.02860, section 3.3; Shaw et al. 2018, arXiv:1803.02155,
        eq. 4 without values; He et al. 2020, arXiv:2006.03654, eq. 4.
    """
    if key_table is None and query_table is None:
        raise ValueError(f"{_WHO}: expected key_table, query_table or both, got None")
    _check_used(
        "key_table", key_table, position_query=position_query, key_table_rows=key_table_rows
    )
    _check_used(
        "query_table", query_table, position_key=position_key, query_table_rows=query_table_rows
    )
    _check_ints(
        zero_row=zero_row, offset=offset, window_left=window_left, window_right=window_right
    )
    p, scale = _plain_numbers(p, scale)
    position_query = query if position_query is None else position_query
    position_key = key if position_key is None else position_key
    if autocast.is_enabled(query):
        query, key, value, _ = autocast.cast_inputs(query, key, value, None)
    _check_layout(query, key, value)
    terms = _term("key_table", key_table, "position_query", position_query, query, query)
    terms |= _term("query_table", query_table, "position_key", position_key, key, query)
    _check_rows("key_table_rows", key_table_rows)
    _check_rows("query_table_rows", query_table_rows)
    if zero_row is None:
        zero_row = _middle((key_table, key_table_rows), (query_table, query_table_rows))
    return _run(
        *(query, key, value, _bias(attn_bias, keep, query, key), p, scale),
        # The band and the tables count from query 0 at key 0.
        band_left=UNBOUNDED if window_left is None else window_left - offset,
        band_right=UNBOUNDED if window_right is None else window_right + offset,
        dropout_seed=draw_seed(_WHO, p, query.device),
        zero_row=zero_row - offset,
        key_table_rows=key_table_rows,
        query_table_rows=query_table_rows,
        **terms,
    )


def _run(*arguments: Any, **named: Any) -> Tensor:  # noqa: ANN401  tensors and numbers
    """Run the operator, whose refusals then name the arguments of `attend_by_position`."""
    try:
        out, _lse = torch.ops.attn_ops.attention_by_position(*arguments, **named)
    except RuntimeError as error:
        refusal = refusal_of_core(error)
        if refusal is None:
            raise
        raise ValueError(f"{_WHO}: {_in_users_terms(refusal)}") from None
    return out


def _in_users_terms(text: str) -> str:
    text = re.sub(r"\bpositions\.(query|key)\b", r"position_\1", text)
    return re.sub(r"\bpositions\.", "", text)


def _check_used(table_name: str, table: Tensor | None, **beside: Tensor | None) -> None:
    for name, x in beside.items():
        if table is None and x is not None:
            raise ValueError(f"{_WHO}: expected {table_name} with {name}, got None")


def _check_ints(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if not (number is None or isinstance(number, int | torch.SymInt)):
            raise TypeError(f"{_WHO}: expected {name}, an int, got {number!r}")


def _plain_numbers(p: float, scale: float | None) -> tuple[float, float | None]:
    """Return p and the scale, checked, as Python's own numbers or torch's symbols."""
    scale = _plain("a number without a gradient, or None, as scale", scale)
    p = _plain("a number as p, the probability of dropping", p) or 0.0
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{_WHO}: expected a dropout probability p in [0, 1], got {p}")
    return p, scale


def _plain(expected: str, number: float | None) -> float | None:
    """Return a number as Python's own, torch's symbols and what is absent as they are."""
    if number is None or number is False or isinstance(number, torch.SymFloat | torch.SymInt):
        return number
    return plain_number(_WHO, expected, number)


def _check_rows(name: str, rows: Tensor | None) -> None:
    if rows is not None and (rows.dtype != torch.int32 or rows.dim() != 1 or rows.shape[0] == 0):
        raise ValueError(
            f"{_WHO}: expected {name}, int32 [distances], got {rows.dtype} {list(rows.shape)}"
        )


def _middle(*pairs: tuple[Tensor | None, Tensor | None]) -> int:
    """Return the middle of the distances that tables have, of pairs of tables and rows."""
    numbers = [
        table.shape[1] if rows is None else rows.shape[0]
        for table, rows in pairs
        if table is not None
    ]
    if numbers[0] != numbers[-1]:
        raise ValueError(
            f"{_WHO}: expected zero_row, the row for a distance of 0, beside tables of different "
            f"numbers of distances, got {numbers[0]} and {numbers[-1]} of them"
        )
    return numbers[0] // 2


def _check_layout(query: Tensor, key: Tensor, value: Tensor) -> None:
    rows = (query, key, value)
    key_heads = key.shape[2] if key.dim() == 4 else 0
    if any(x.dim() != 4 for x in rows) or key_heads == 0 or query.shape[2] % key_heads != 0:
        raise ValueError(
            f"{_WHO}: expected query [B, Mq, H, K], key [B, Mkv, Hkv, K] and value [B, Mkv, Hkv, "
            f"Kv], H a multiple of Hkv, got {', '.join(str(list(x.shape)) for x in rows)}"
        )


def _term(
    table_name: str,
    table: Tensor | None,
    features_name: str,
    features: Tensor,
    content: Tensor,
    query: Tensor,
) -> dict[str, Tensor | None]:
    """Return a table and its features by name, as the operator reads them; nothing if None.

    content: [B, M, H, K], the query or key that the operator takes for features that are None.
    """
    if table is None:
        return {}
    _check_term(table_name, table, features_name, features, query, content.shape[1])
    read = None if features is content else _rows(features, query)
    return {table_name: _rows(table, query), features_name: read}


def _check_term(
    table_name: str,
    table: Tensor,
    features_name: str,
    features: Tensor,
    query: Tensor,
    num_rows: int,
) -> None:
    batch, _, heads, _ = query.shape
    # Not `in` a tuple, here and below: Dynamo would compare no symbolic size.
    is_per_head = table.dim() == 3 and (table.shape[0] == 1 or table.shape[0] == heads)
    if features.dim() != 4 or features.shape[:3] != (batch, num_rows, heads):
        raise ValueError(
            f"{_WHO}: expected {features_name} [{batch}, {num_rows}, {heads}, width] with "
            f"{table_name}, got {list(features.shape)}"
        )
    width = features.shape[3]
    if not is_per_head or table.shape[2] != width:
        raise ValueError(
            f"{_WHO}: expected {table_name} [{heads} or 1, distances, {width}], as wide as "
            f"{features_name}, got {list(table.shape)}"
        )
    if table.shape[1] == 0 or not (table.is_floating_point() and features.is_floating_point()):
        raise ValueError(
            f"{_WHO}: expected {table_name} with a row, floating point as {features_name}, got "
            f"{table.dtype} {list(table.shape)} and {features.dtype}"
        )


def _check_mask(name: str, mask: Tensor | None, query: Tensor, key: Tensor) -> None:
    if mask is None:
        return
    full = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    fits = mask.dim() == len(full) and all(
        size == 1 or size == expected  # noqa: PLR1714  see above
        for size, expected in zip(mask.shape, full, strict=True)
    )
    has_dtype = mask.dtype == torch.bool if name == "keep" else mask.is_floating_point()
    if not fits or not has_dtype:
        raise ValueError(
            f"{_WHO}: expected {name}, {'bool' if name == 'keep' else 'floating'}, to broadcast to "
            f"{list(full)} with all 4 axes, got {mask.dtype} {list(mask.shape)}"
        )


def _bias(
    attn_bias: Tensor | None, keep: Tensor | None, query: Tensor, key: Tensor
) -> Tensor | None:
    """Return the two masks, checked, as the one that the operator takes."""
    _check_mask("attn_bias", attn_bias, query, key)
    _check_mask("keep", keep, query, key)
    if attn_bias is None:
        return keep
    attn_bias = _readable(attn_bias, query)
    return attn_bias if keep is None else torch.where(keep, attn_bias, -torch.inf)


def _rows(x: Tensor, query: Tensor) -> Tensor:
    """Return features or a table as the operator reads them: with contiguous rows."""
    return with_unit_stride(_readable(x, query))


def _readable(x: Tensor, query: Tensor) -> Tensor:
    """Return a tensor in a dtype that the operator reads beside such queries."""
    dtype = working_dtype(query.dtype)
    return x if x.dtype == query.dtype else x.to(dtype)
