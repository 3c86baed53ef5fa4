"""Attention with scores of relative positions, one chunk of queries after the other."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from attn_continual._position_scores import DistanceProduct
from attn_ops.fmha import (
    memory_efficient_attention_backward,
    memory_efficient_attention_forward_requires_grad,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_SCORES_PER_THREAD = 1 << 20
"""Heads and samples are taken together while a chunk has no more scores for each thread."""


class PositionCall(NamedTuple):
    """What `attend_by_position` is called with; its docstring says what each means."""

    query: Tensor
    key: Tensor
    value: Tensor
    position_query: Tensor | None
    key_table: Tensor | None
    position_key: Tensor | None
    query_table: Tensor | None
    attn_bias: Tensor | None
    keep: Tensor | None
    dropout_seed: Tensor | None
    scale: float
    p: float
    zero_row: int
    offset: int
    window_left: int | None
    window_right: int | None
    chunk_size: int

    @property
    def compute_dtype(self) -> torch.dtype:
        """That of scores and of sums of gradients."""
        return torch.float64 if self.query.dtype == torch.float64 else torch.float32


class Gradients(NamedTuple):
    """Sums of the gradients of the first eight of `PositionCall`, in the dtype of computing."""

    query: Tensor
    key: Tensor
    value: Tensor
    position_query: Tensor | None
    key_table: Tensor | None
    position_key: Tensor | None
    query_table: Tensor | None
    attn_bias: Tensor | None


class Chunk(NamedTuple):
    """Some samples, heads and queries, and the keys that these may see."""

    number: int
    samples: slice
    heads: slice
    key_heads: slice
    queries: slice
    keys: slice


class Scores(NamedTuple):
    """What positions and masks add to the scaled products of a chunk."""

    total: Tensor
    """[B, H, queries, keys]"""
    of_queries: DistanceProduct | None
    of_keys: list[tuple[slice, DistanceProduct]]
    """For blocks of the chunk's keys; rows are keys, columns queries."""


def forward(call: PositionCall, out: Tensor, lse: Tensor) -> None:
    """Write the output [B, Mq, H, Kv] and its LSE [B, H, Mq]."""
    out.zero_()
    lse.fill_(-torch.inf)
    tables = _tables(call)
    for chunk in _chunks(call):
        scores = _scores(call, tables, chunk)
        part, part_lse = memory_efficient_attention_forward_requires_grad(
            *_rows(call, chunk), **_options(call, chunk, scores)
        )
        out[chunk.samples, chunk.queries, chunk.heads] = part
        lse[chunk.samples, chunk.heads, chunk.queries] = part_lse


def backward(call: PositionCall, out: Tensor, lse: Tensor, grad_out: Tensor) -> Gradients:
    """Return the gradients; the scores of each chunk are computed again."""
    dtype = call.compute_dtype
    zeros: list[Any] = [None if x is None else _zeros(x, dtype) for x in call[:8]]
    grads = Gradients(*zeros)
    tables = _tables(call)
    for chunk in _chunks(call):
        scores = _scores(call, tables, chunk)
        dq, dk, dv, dscores = memory_efficient_attention_backward(
            grad_out[chunk.samples, chunk.queries, chunk.heads],
            out[chunk.samples, chunk.queries, chunk.heads],
            lse[chunk.samples, chunk.heads, chunk.queries].contiguous(),
            *_rows(call, chunk),
            **_options(call, chunk, scores),
            needs_bias_gradient=True,
        )
        grads.query[chunk.samples, chunk.queries, chunk.heads] = dq.to(dtype)
        grads.key[chunk.samples, chunk.keys, chunk.key_heads] += dk
        grads.value[chunk.samples, chunk.keys, chunk.key_heads] += dv
        if grads.attn_bias is not None:
            part = _part(grads.attn_bias, chunk)
            part += dscores.sum_to_size(part.shape)
        _add_position_gradients(call, grads, chunk, scores, dscores)
    return grads


def _zeros(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_zeros(x.shape, dtype=dtype)


def _tables(call: PositionCall) -> tuple[Tensor | None, Tensor | None]:
    """Return the tables in the dtype of computing; that of queries from the last row to the first.

    A key's distances to the queries after it descend.
    """
    key_table = None if call.key_table is None else call.key_table.to(call.compute_dtype)
    query_table = None if call.query_table is None else call.query_table.to(call.compute_dtype)
    return key_table, None if query_table is None else query_table.flip(1)


def _chunks(call: PositionCall) -> Iterator[Chunk]:
    (batch, queries, heads, _), (keys, key_heads) = call.query.shape, call.key.shape[1:3]
    size = min(call.chunk_size, max(queries, 1))
    at_once = max(_SCORES_PER_THREAD * torch.get_num_threads() // (size * (keys + size)), 1)
    group = heads // max(key_heads, 1)
    key_heads_at_once = min(max(at_once // max(group, 1), 1), max(key_heads, 1))
    pieces = itertools.product(
        _slices(batch, max(at_once // max(heads, 1), 1)),
        _slices(key_heads, key_heads_at_once),
        _slices(queries, size),
    )
    for number, (samples, of_keys, rows) in enumerate(pieces):
        left, right = 0, keys
        if call.window_left is not None:
            left = max(rows.start + call.offset - call.window_left, 0)
        if call.window_right is not None:
            right = min(rows.stop + call.offset + call.window_right, keys)
        if left < right:
            of_queries = slice(of_keys.start * group, of_keys.stop * group)
            yield Chunk(number, samples, of_queries, of_keys, rows, slice(left, right))


def _slices(total: int, size: int) -> list[slice]:
    return [slice(begin, min(begin + size, total)) for begin in range(0, total, size)]


def _rows(call: PositionCall, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
    return (
        call.query[chunk.samples, chunk.queries, chunk.heads],
        call.key[chunk.samples, chunk.keys, chunk.key_heads],
        call.value[chunk.samples, chunk.keys, chunk.key_heads],
    )


def _of_heads(table: Tensor, chunk: Chunk) -> Tensor:
    """Return the part of a table [H or 1, Z, K]."""
    return table if table.shape[0] == 1 else table[chunk.heads]


def _options(call: PositionCall, chunk: Chunk, scores: Scores) -> dict[str, Any]:
    seed = call.dropout_seed
    if seed is not None:
        seed = seed + seed.new_tensor([chunk.number, 0])
    return {"attn_bias": scores.total, "p": call.p, "scale": call.scale, "dropout_seed": seed}


def _scores(
    call: PositionCall, tables: tuple[Tensor | None, Tensor | None], chunk: Chunk
) -> Scores:
    key_table, query_table = tables
    of_queries, of_keys = None, []
    columns = chunk.keys.stop - chunk.keys.start
    if key_table is not None and call.position_query is not None:
        rows = call.position_query[chunk.samples, chunk.queries, chunk.heads]
        table = _of_heads(key_table, chunk)
        first = call.zero_row + chunk.keys.start - chunk.queries.start - call.offset
        of_queries = DistanceProduct.compute(rows, table, first, columns, call.scale)
        total = of_queries.scores
    else:
        batch, num_rows, heads, _ = call.query[chunk.samples, chunk.queries, chunk.heads].shape
        shape = (batch, heads, num_rows, columns)
        total = call.query.new_zeros(shape, dtype=call.compute_dtype)
    if query_table is not None and call.position_key is not None:
        of_keys = _scores_of_keys(call, call.position_key, _of_heads(query_table, chunk), chunk)
        for keys, product in of_keys:
            total[..., keys].add_(product.scores.mT)
    if call.attn_bias is not None:
        total.add_(_part(call.attn_bias, chunk))
    _hide(call, chunk, total)
    return Scores(total, of_queries, of_keys)


def _scores_of_keys(
    call: PositionCall, position_key: Tensor, flipped_table: Tensor, chunk: Chunk
) -> list[tuple[slice, DistanceProduct]]:
    """Return the products of blocks of keys, as many as there are queries.

    With more keys than that, most distances of a block would be those of no query.
    """
    begin, end = chunk.queries.start, chunk.queries.stop
    zero_row = flipped_table.shape[1] - 1 - call.zero_row
    products = []
    for key in range(chunk.keys.start, chunk.keys.stop, end - begin):
        stop = min(key + end - begin, chunk.keys.stop)
        first = zero_row + begin + call.offset - key
        rows = position_key[chunk.samples, key:stop, chunk.heads]
        product = DistanceProduct.compute(rows, flipped_table, first, end - begin, call.scale)
        products.append((slice(key - chunk.keys.start, stop - chunk.keys.start), product))
    return products


def _hide(call: PositionCall, chunk: Chunk, total: Tensor) -> None:
    """Put -inf where the window or `keep` hides a key."""
    keys = torch.arange(chunk.keys.start, chunk.keys.stop, device=total.device)
    places = torch.arange(chunk.queries.start, chunk.queries.stop, device=total.device)
    places = places[:, None] + call.offset
    if call.window_left is not None:
        seen_by_all = chunk.queries.stop - 1 + call.offset - call.window_left
        some = slice(0, max(seen_by_all - chunk.keys.start, 0))
        total[..., some].masked_fill_(keys[some] < places - call.window_left, -torch.inf)
    if call.window_right is not None:
        seen_by_all = chunk.queries.start + call.offset + call.window_right + 1
        some = slice(max(seen_by_all - chunk.keys.start, 0), None)
        total[..., some].masked_fill_(keys[some] > places + call.window_right, -torch.inf)
    if call.keep is not None:
        total.masked_fill_(~_part(call.keep, chunk), -torch.inf)


def _part(mask: Tensor, chunk: Chunk) -> Tensor:
    """Return what [B or 1, H or 1, Mq or 1, Mkv or 1] says of a chunk."""
    parts = (chunk.samples, chunk.heads, chunk.queries, chunk.keys)
    return mask[
        tuple(
            part if size > 1 else slice(None) for part, size in zip(parts, mask.shape, strict=True)
        )
    ]


def _add_position_gradients(
    call: PositionCall, grads: Gradients, chunk: Chunk, scores: Scores, dscores: Tensor
) -> None:
    if scores.of_keys and grads.position_key is not None and grads.query_table is not None:
        table = _of_heads(grads.query_table, chunk)
        flipped = table.new_zeros(table.shape)
        for keys, product in scores.of_keys:
            rows = grads.position_key[chunk.samples, chunk.keys, chunk.heads][:, keys]
            product.add_gradients(dscores[..., keys].mT, rows, flipped, call.scale)
        table.add_(flipped.flip(1))
    if scores.of_queries is not None and grads.position_query is not None:
        rows = grads.position_query[chunk.samples, chunk.queries, chunk.heads]
        if grads.key_table is not None:
            table = _of_heads(grads.key_table, chunk)
            scores.of_queries.add_gradients(dscores, rows, table, call.scale)
