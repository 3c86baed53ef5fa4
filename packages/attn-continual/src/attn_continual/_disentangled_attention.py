"""Logits of content and of looked-up positions, and what they pool, as one operator of torch.

It takes some heads after the other and keeps their logits alone: what it looks up, and the
gradients of the logits, exist for these heads only, and are computed again in the backward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from attn_ops.fmha import (
    memory_efficient_attention_backward,
    memory_efficient_attention_forward_requires_grad,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOGITS_PER_THREAD = 1 << 20
"""Heads and samples are taken together while they have no more logits for each thread."""

_SCHEMA = (
    "Tensor query, Tensor key, Tensor? value, Tensor? key_table, Tensor? query_table, "
    "Tensor? head_bias, Tensor? base, Tensor? positions, Tensor? no_position, Tensor? keep, "
    "Tensor? dropout_seed, float scale, float p, bool has_content, bool transposes"
)
_NUM_DIFFERENTIABLE = 7


class DisentangledCall(NamedTuple):
    """What `disentangled_attention` takes."""

    query: Tensor
    """[n, q, h, d]"""
    key: Tensor
    """[n, k, h, d]"""
    value: Tensor | None
    """[n, k, H, v], of the last H heads; None: nothing is pooled."""
    key_table: Tensor | None
    """[coordinates, h, Z, d / coordinates]: positions as keys, for queries; None: no such term."""
    query_table: Tensor | None
    """Likewise: positions as queries, for keys."""
    head_bias: Tensor | None
    """[h], added."""
    base: Tensor | None
    """[n or 1, h or 1, q or 1, k or 1], added."""
    positions: Tensor | None
    """int [n or 1, q, k, coordinates]: which row of the tables each pair reads, from Z // 2."""
    no_position: Tensor | None
    """bool [n or 1, 1, q or 1, k or 1]: True leaves the terms of positions out."""
    keep: Tensor | None
    """bool [n or 1, H or 1, q or 1, k or 1]: True pools a key."""
    dropout_seed: Tensor | None
    scale: float
    """Of every term."""
    p: float
    """The probability of dropping a weight."""
    has_content: bool
    """Whether there is the term of query and key."""
    transposes: bool
    """Whether a key j reads row (j, i) for the query i; else (i, j)."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """That of logits while they are added up."""
        return torch.float64 if self.query.dtype == torch.float64 else torch.float32

    @property
    def logits_dtype(self) -> torch.dtype:
        """That of the result."""
        dtype = self.query.dtype
        return dtype if self.base is None else torch.promote_types(dtype, self.base.dtype)


class Piece(NamedTuple):
    """Some heads of some samples, in the dtype of computing and by head."""

    number: int
    samples: slice
    heads: slice
    query: Tensor
    """[n, h, q, d], scaled"""
    key: Tensor
    """[n, h, k, d], scaled: for the terms of positions"""
    rows: list[Tensor]
    """int64 [n or 1, h, q, k] for each coordinate."""


def disentangled_attention(call: DisentangledCall) -> tuple[Tensor, Tensor]:
    """Return logits [n, h, q, k] and outputs [n, q, H, v], of which there are none without values.

    Differentiable once in the floating-point tensors.
    """
    logits, pooled, _lse = _forward(*call)
    return logits, pooled


@torch.library.custom_op(
    "attn_continual::disentangled_attention",
    mutates_args=(),
    schema=f"({_SCHEMA}) -> (Tensor logits, Tensor pooled, Tensor lse)",
)
def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
    call = DisentangledCall(*arguments)
    logits, pooled, lse = _allocate(*arguments)
    with torch.autocast(call.query.device.type, enabled=False):
        for piece in _pieces(call):
            logits[piece.samples, piece.heads] = _logits(call, piece)
            if (pooling := _pooling(call, piece, logits)) is not None:
                out, out_lse = memory_efficient_attention_forward_requires_grad(
                    *pooling.operands, **pooling.options
                )
                pooled[piece.samples, :, pooling.heads] = out
                lse[piece.samples, pooling.heads] = out_lse
    return logits, pooled, lse


@_forward.register_fake
def _allocate(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
    call = DisentangledCall(*arguments)
    (samples, queries, heads, _), keys = call.query.shape, call.key.shape[1]
    pooled_heads, width = (0, 0) if call.value is None else call.value.shape[2:]
    new = call.query.new_empty
    return (
        new(samples, heads, queries, keys, dtype=call.logits_dtype),
        new(samples, queries, pooled_heads, width, dtype=call.query.dtype),
        new(samples, pooled_heads, queries, dtype=call.compute_dtype),
    )


def _pieces(call: DisentangledCall) -> Iterator[Piece]:
    samples, queries, heads, _ = call.query.shape
    logits = max(queries * call.key.shape[1], 1)
    at_once = max(_LOGITS_PER_THREAD * torch.get_num_threads() // logits, 1)
    samples_at_once = max(at_once // max(heads, 1), 1)
    number = 0
    for sample in range(0, samples, samples_at_once):
        some = slice(sample, min(sample + samples_at_once, samples))
        rows = _rows(call, some)
        for head in range(0, heads, min(at_once, heads)):
            these = slice(head, min(head + at_once, heads))
            query, key = (
                x[some, :, these].to(call.compute_dtype).transpose(1, 2) * call.scale
                for x in (call.query, call.key)
            )
            by_head = [x.expand(some.stop - some.start, query.shape[1], -1, -1) for x in rows]
            yield Piece(number, some, these, query, key, by_head)
            number += 1


def _rows(call: DisentangledCall, samples: slice) -> list[Tensor]:
    table = call.query_table if call.key_table is None else call.key_table
    if call.positions is None or table is None:
        return []
    last, middle = table.shape[2] - 1, table.shape[2] // 2
    positions = call.positions if call.positions.shape[0] == 1 else call.positions[samples]
    # Clamped before the middle is added: the largest integers stand for "far away".
    near = (x.to(torch.int64).clamp(-middle, last - middle) for x in positions.unbind(-1))
    return [x.add_(middle).unsqueeze(1) for x in near]


def _logits(call: DisentangledCall, piece: Piece) -> Tensor:
    """Return the logits of a piece, [n, h, q, k]."""
    key = call.key[piece.samples, :, piece.heads].to(piece.query.dtype).transpose(1, 2)
    shape = (*piece.query.shape[:3], key.shape[2])
    total = piece.query.new_zeros(shape)
    for lookup in _lookups(call, piece):
        lookup.oriented(total).add_((lookup.content @ lookup.table.mT).gather(3, lookup.read))
    if call.no_position is not None:
        total.masked_fill_(_part(call.no_position, piece.samples, slice(None)), 0.0)
    if call.has_content:
        total += piece.query @ key.mT
    if call.head_bias is not None:
        total += call.head_bias[piece.heads, None, None]
    if call.base is not None:
        total += _part(call.base, piece.samples, piece.heads)
    return total


class Lookup(NamedTuple):
    """One term of positions along one coordinate: content_r . table[read[r, c]]."""

    content: Tensor
    """[n, h, rows, d / coordinates]"""
    table: Tensor
    """[h, Z, d / coordinates]"""
    read: Tensor
    """int64 [n, h, rows, columns]"""
    of_keys: bool
    """Whether rows are keys, and columns queries."""
    coordinate: int

    def oriented(self, logits: Tensor) -> Tensor:
        """View [n, h, q, k] as [n, h, rows, columns]."""
        return logits.mT if self.of_keys else logits


def _lookups(call: DisentangledCall, piece: Piece) -> Iterator[Lookup]:
    for table, content, of_keys in (
        (call.key_table, piece.query, False),
        (call.query_table, piece.key, True),
    ):
        if table is None:
            continue
        parts = content.chunk(len(piece.rows), dim=-1)
        for c, (part, rows) in enumerate(zip(parts, piece.rows, strict=True)):
            read = rows.mT if of_keys and not call.transposes else rows
            yield Lookup(part, table[c, piece.heads].to(content.dtype), read, of_keys, c)


class Pooling(NamedTuple):
    """Attention whose scores are the logits: of queries and keys that are zeros."""

    heads: slice
    """Among those that have values."""
    first: int
    """The first of them among the heads of the piece."""
    operands: tuple[Tensor, Tensor, Tensor]
    options: dict[str, Any]


def _pooling(call: DisentangledCall, piece: Piece, logits: Tensor) -> Pooling | None:
    if call.value is None:
        return None
    extra = call.query.shape[2] - call.value.shape[2]
    begin = max(piece.heads.start, extra)
    if begin >= piece.heads.stop:
        return None
    heads = slice(begin - extra, piece.heads.stop - extra)
    bias = logits[piece.samples, begin : piece.heads.stop].to(call.compute_dtype)
    if call.keep is not None:
        bias = bias.masked_fill(~_part(call.keep, piece.samples, heads), -torch.inf)
    value = call.value[piece.samples, :, heads].to(call.compute_dtype)
    samples, count, queries, keys = bias.shape
    operands = (
        value.new_zeros(samples, queries, count, 1),
        value.new_zeros(samples, keys, count, 1),
        value,
    )
    seed = call.dropout_seed
    if seed is not None:
        seed = seed + seed.new_tensor([piece.number, 0])
    options = {"attn_bias": bias, "p": call.p, "scale": 1.0, "dropout_seed": seed}
    return Pooling(heads, begin - piece.heads.start, operands, options)


def _part(x: Tensor, samples: slice, heads: slice) -> Tensor:
    """Return the part of [n or 1, h or 1, ...] that belongs to some heads of some samples."""
    x = x if x.shape[0] == 1 else x[samples]
    return x if x.shape[1] == 1 else x[:, heads]


@torch.library.custom_op(
    "attn_continual::disentangled_attention_backward",
    mutates_args=(),
    schema=(
        "(Tensor? grad_logits, Tensor? grad_pooled, Tensor logits, Tensor pooled, Tensor lse, "
        f"bool needs_base, {_SCHEMA}) -> Tensor[]"
    ),
)
def _differentiate(
    grad_logits: Tensor | None,
    grad_pooled: Tensor | None,
    logits: Tensor,
    pooled: Tensor,
    lse: Tensor,
    needs_base: bool,
    *arguments: Any,  # noqa: ANN401
) -> list[Tensor]:
    call = DisentangledCall(*arguments)
    zeros: list[Any] = [
        None if x is None else x.new_zeros(x.shape, dtype=call.compute_dtype)
        for x in arguments[:_NUM_DIFFERENTIABLE]
    ]
    grads = Gradients(*zeros[:-1], base=zeros[-1] if needs_base else None)
    with torch.autocast(call.query.device.type, enabled=False):
        for piece in _pieces(call):
            total = torch.zeros_like(logits[piece.samples, piece.heads], dtype=call.compute_dtype)
            if grad_logits is not None:
                total += grad_logits[piece.samples, piece.heads]
            if grad_pooled is not None:
                _add_pooling_gradients(
                    call, piece, total, grads, (grad_pooled, logits, pooled, lse)
                )
            _add_gradients(call, piece, total, grads)
    pairs = zip(grads, arguments[:_NUM_DIFFERENTIABLE], strict=True)
    return [grad.to(x.dtype) for grad, x in pairs if grad is not None]


class Gradients(NamedTuple):
    """Sums of the gradients of the first of `DisentangledCall`, in the dtype of computing."""

    query: Tensor
    key: Tensor
    value: Tensor | None
    key_table: Tensor | None
    query_table: Tensor | None
    head_bias: Tensor | None
    base: Tensor | None


def _add_pooling_gradients(
    call: DisentangledCall,
    piece: Piece,
    total: Tensor,
    grads: Gradients,
    pooled: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    """Add to the gradients of a piece's logits and of values.

    pooled: the gradient of the outputs, the logits, the outputs and their LSE.
    """
    grad_out, logits, out, lse = pooled
    pooling = _pooling(call, piece, logits)
    if pooling is None or grads.value is None:
        return
    here = (piece.samples, slice(None), pooling.heads)
    *_, grad_value, grad_bias = memory_efficient_attention_backward(
        grad_out[here].to(total.dtype),
        out[here].to(total.dtype),
        lse[piece.samples, pooling.heads].contiguous(),
        *pooling.operands,
        **pooling.options,
        needs_bias_gradient=True,
    )
    total[:, pooling.first :] += grad_bias
    grads.value[here] = grad_value


def _add_gradients(call: DisentangledCall, piece: Piece, total: Tensor, grads: Gradients) -> None:
    """Add what a piece's gradient of the logits, [n, h, q, k], makes of the inputs."""
    if grads.base is not None:
        part = _part(grads.base, piece.samples, piece.heads)
        part += total.sum_to_size(part.shape)
    if grads.head_bias is not None:
        grads.head_bias[piece.heads] += total.sum((0, 2, 3))
    by_query = grads.query[piece.samples, :, piece.heads].transpose(1, 2)
    by_key = grads.key[piece.samples, :, piece.heads].transpose(1, 2)
    if call.has_content:
        key = call.key[piece.samples, :, piece.heads].to(total.dtype).transpose(1, 2)
        by_query.add_(total @ key, alpha=call.scale)
        by_key += total.mT @ piece.query
    if call.no_position is not None:
        total.masked_fill_(_part(call.no_position, piece.samples, slice(None)), 0.0)
    for lookup in _lookups(call, piece):
        by_row = total.new_zeros(*lookup.content.shape[:3], lookup.table.shape[1])
        by_row.scatter_add_(3, lookup.read, lookup.oriented(total))
        content = by_key if lookup.of_keys else by_query
        part = content.chunk(len(piece.rows), dim=-1)[lookup.coordinate]
        part.add_(by_row @ lookup.table, alpha=call.scale)
        table = grads.query_table if lookup.of_keys else grads.key_table
        if table is not None:
            table[lookup.coordinate, piece.heads] += (by_row.mT @ lookup.content).sum(0)


@_differentiate.register_fake
def _allocate_gradients(*arguments: Any) -> list[Tensor]:  # noqa: ANN401
    needs_base, *inputs = arguments[5:]
    count = _NUM_DIFFERENTIABLE if needs_base else _NUM_DIFFERENTIABLE - 1
    return [x.new_empty(x.shape) for x in inputs[:count] if x is not None]


def _save(
    ctx: Any,  # noqa: ANN401  torch's own signature
    inputs: tuple[Any, ...],
    output: tuple[Tensor, Tensor, Tensor],
) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, *inputs[:11])
    ctx.numbers = inputs[11:]


def _backward(
    ctx: Any,  # noqa: ANN401
    grad_logits: Tensor | None,
    grad_pooled: Tensor | None,
    _grad_lse: Tensor | None,
) -> tuple[Tensor | None, ...]:
    outputs, tensors = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
    needs_base = tensors[6] is not None and ctx.needs_input_grad[6]
    found = iter(
        _differentiate(grad_logits, grad_pooled, *outputs, needs_base, *tensors, *ctx.numbers)
    )
    grads = [None if x is None else next(found) for x in tensors[: _NUM_DIFFERENTIABLE - 1]]
    grads.append(next(found) if needs_base else None)
    return *grads, *[None] * (4 + len(ctx.numbers))


_forward.register_autograd(_backward, setup_context=_save)
