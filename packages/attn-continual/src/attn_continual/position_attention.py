"""`attend_by_position`: attention whose scores know how far each key is from each query."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attn_continual import _position_chunks
from attn_continual._position_chunks import PositionCall

_SCHEMA = (
    "Tensor query, Tensor key, Tensor value, Tensor? position_query, Tensor? key_table, "
    "Tensor? position_key, Tensor? query_table, Tensor? attn_bias, Tensor? keep, "
    "Tensor? dropout_seed, float scale, float p, SymInt zero_row, SymInt offset, "
    "SymInt? window_left, SymInt? window_right, SymInt chunk_size"
)
_NUM_DIFFERENTIABLE = 8


def attend_by_position(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_table: Tensor | None = None,
    *,
    position_query: Tensor | None = None,
    query_table: Tensor | None = None,
    position_key: Tensor | None = None,
    zero_row: int | None = None,
    offset: int = 0,
    window_left: int | None = None,
    window_right: int | None = None,
    attn_bias: Tensor | None = None,
    keep: Tensor | None = None,
    p: float = 0.0,
    scale: float | None = None,
    chunk_size: int = 256,
) -> Tensor:
    """Attend with scores of content and of relative positions, exactly.

    Query i stands at place i + offset among the keys. With d = j - (i + offset) the distance of key
    j from it and r = clamp(d + zero_row, 0, Z - 1), the result is the softmax over the keys of

        attn_bias_ij + scale * (
            query_i . key_j + position_query_i . key_table[r] + position_key_j . query_table[r]),

    applied to the values. A table that is None leaves its term out. Transformer-XL, with its biases
    u and v: `query` is q + u, `position_query` q + v, `key_table` the projected encodings; Shaw et
    al.: the table of keys alone; DeBERTa: both tables, after its buckets are looked up by distance.

    Shapes: query [B, Mq, H, K]; key [B, Mkv, Hkv, K]; value [B, Mkv, Hkv, Kv]; key_table [H or 1,
        Z, Kp]; position_query [B, Mq, H, Kp], default `query`; query_table [H or 1, Z, Kp'];
        position_key [B, Mkv, H, Kp'], default `key`; result [B, Mq, H, Kv].
    Dtypes: query, key and value alike; the rest any floating point: scores of positions are
        computed in float32, in float64 for such queries. Autocast casts the three as in attn_ops.
    Cost: memory O(chunk_size Mkv) for each thread beyond inputs and results, in both directions;
        for a `query_table` twice the multiplications of the other terms.
    zero_row: the row of both tables for a distance of 0; default Z // 2. The first and the last row
        stand for all distances beyond them.
    window_left, window_right: how many keys before and after its own place a query sees; None: all.
        Causal attention has a `window_right` of 0.
    attn_bias: [B or 1, H or 1, Mq or 1, Mkv or 1], floating point; added.
    keep: bool, of the same shapes: True keeps a key. NaN in padded keys reaches no output.
    p: the probability of dropping an attention weight; drawn from torch's CPU generator.
    scale: default K ** -0.5.
    Numerics: a query that sees no key gives 0, and gradients of 0; the same bits on every run.
    Differentiable once in every floating-point tensor.
    Raises: ValueError if there is no table, or a tensor does not fit.
    Source: Dai et al. 2019, arXiv:1901.02860, section 3.3; Shaw et al. 2018, arXiv:1803.02155,
        eq. 4 without values; He et al. 2020, arXiv:2006.03654, eq. 4.
    """
    position_query = query if position_query is None else position_query
    position_key = key if position_key is None else position_key
    query, key, value = _cast_under_autocast(query, key, value)
    tables = [table for table in (key_table, query_table) if table is not None]
    if not tables:
        raise ValueError("attend_by_position: expected key_table, query_table or both, got None")
    call = PositionCall(
        query,
        key,
        value,
        None if key_table is None else position_query,
        key_table,
        None if query_table is None else position_key,
        query_table,
        attn_bias,
        keep,
        torch.randint(2**62, (2,), dtype=torch.int64, device="cpu") if p > 0 else None,
        query.shape[-1] ** -0.5 if scale is None else scale,
        p,
        tables[0].shape[1] // 2 if zero_row is None else zero_row,
        offset,
        window_left,
        window_right,
        chunk_size,
    )
    _check(call)
    out, _lse = _attend(*call)
    return out


def _cast_under_autocast(*tensors: Tensor) -> list[Tensor]:
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x if x.dtype == torch.float64 else x.to(dtype) for x in tensors]


def _check(call: PositionCall) -> None:
    """Raise ValueError unless what attn_ops does not see fits; it checks the rest."""
    rows = (call.query, call.key, call.value)
    key_heads = call.key.shape[2] if call.key.dim() == 4 else 0
    if any(x.dim() != 4 for x in rows) or key_heads == 0 or call.query.shape[2] % key_heads != 0:
        raise ValueError(
            "attend_by_position: expected query [B, Mq, H, K], key [B, Mkv, Hkv, K] and value [B, "
            f"Mkv, Hkv, Kv], H a multiple of Hkv, got {', '.join(str(list(x.shape)) for x in rows)}"
        )
    batch, queries, heads, _ = call.query.shape
    keys = call.key.shape[1]
    _check_term("key_table", call.key_table, "position_query", call.position_query, queries, call)
    _check_term("query_table", call.query_table, "position_key", call.position_key, keys, call)
    full = (batch, heads, queries, keys)
    for name, mask in (("attn_bias", call.attn_bias), ("keep", call.keep)):
        if mask is None:
            continue
        fits = mask.dim() == len(full) and all(
            size == 1 or size == expected  # noqa: PLR1714  see below
            for size, expected in zip(mask.shape, full, strict=True)
        )
        has_dtype = mask.dtype == torch.bool if name == "keep" else mask.is_floating_point()
        if not fits or not has_dtype:
            raise ValueError(
                f"attend_by_position: expected {name}, {'bool' if name == 'keep' else 'floating'}"
                f", to broadcast to {list(full)} with all 4 axes, got {mask.dtype} "
                f"{list(mask.shape)}"
            )
    if call.chunk_size < 1:
        raise ValueError(f"attend_by_position: expected chunk_size >= 1, got {call.chunk_size}")


def _check_term(
    table_name: str,
    table: Tensor | None,
    rows_name: str,
    rows: Tensor | None,
    num_rows: int,
    call: PositionCall,
) -> None:
    if table is None or rows is None:
        return
    heads, width = call.query.shape[2], rows.shape[-1]
    # Not `in` a tuple, here and above: Dynamo would compare no symbolic size.
    is_per_head = table.dim() == 3 and (table.shape[0] == 1 or table.shape[0] == heads)
    if rows.dim() != 4 or rows.shape[:3] != (call.query.shape[0], num_rows, heads):
        raise ValueError(
            f"attend_by_position: expected {rows_name} [{call.query.shape[0]}, {num_rows}, {heads},"
            f" width] with {table_name}, got {list(rows.shape)}"
        )
    if not is_per_head or table.shape[2] != width:
        raise ValueError(
            f"attend_by_position: expected {table_name} [{heads} or 1, distances, {width}], as wide"
            f" as {rows_name}, got {list(table.shape)}"
        )
    if table.shape[1] == 0 or not (table.is_floating_point() and rows.is_floating_point()):
        raise ValueError(
            f"attend_by_position: expected {table_name} with a row, floating point as {rows_name}, "
            f"got {table.dtype} {list(table.shape)} and {rows.dtype}"
        )


@torch.library.custom_op(
    "attn_continual::attend_by_position",
    mutates_args=(),
    schema=f"({_SCHEMA}) -> (Tensor out, Tensor lse)",
)
def _attend(*arguments: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401  those of PositionCall
    call = PositionCall(*arguments)
    out, lse = _allocate(*arguments)
    with torch.autocast(call.query.device.type, enabled=False):
        _position_chunks.forward(call, out, lse)
    return out, lse


@_attend.register_fake
def _allocate(*arguments: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    call = PositionCall(*arguments)
    batch, queries, heads, _ = call.query.shape
    out = call.query.new_empty(batch, queries, heads, call.value.shape[-1])
    return out, call.query.new_empty(batch, heads, queries, dtype=call.compute_dtype)


@torch.library.custom_op(
    "attn_continual::attend_by_position_backward",
    mutates_args=(),
    schema=f"(Tensor grad_out, Tensor out, Tensor lse, {_SCHEMA}) -> Tensor[]",
)
def _differentiate(
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    *arguments: Any,  # noqa: ANN401
) -> list[Tensor]:
    call = PositionCall(*arguments)
    with torch.autocast(call.query.device.type, enabled=False):
        grads = _position_chunks.backward(call, out, lse, grad_out)
    pairs = zip(grads, arguments[:_NUM_DIFFERENTIABLE], strict=True)
    return [grad.to(x.dtype) for grad, x in pairs if grad is not None]


@_differentiate.register_fake
def _allocate_gradients(*arguments: Any) -> list[Tensor]:  # noqa: ANN401
    call = PositionCall(*arguments[3:])
    return [x.new_empty(x.shape) for x in call[:_NUM_DIFFERENTIABLE] if x is not None]


def _save(
    ctx: Any,  # noqa: ANN401  torch's own signature
    inputs: tuple[Any, ...],
    output: tuple[Tensor, Tensor],
) -> None:
    call = PositionCall(*inputs)
    ctx.save_for_backward(*output, *call[:10])
    ctx.numbers = call[10:]


def _backward(
    ctx: Any,  # noqa: ANN401
    grad_out: Tensor,
    _grad_lse: Tensor,
) -> tuple[Tensor | None, ...]:
    out, lse, *tensors = ctx.saved_tensors
    found = iter(_differentiate(grad_out, out, lse, *tensors, *ctx.numbers))
    grads = [None if x is None else next(found) for x in tensors[:_NUM_DIFFERENTIABLE]]
    return *grads, *[None] * (2 + len(ctx.numbers))


_attend.register_autograd(_backward, setup_context=_save)
