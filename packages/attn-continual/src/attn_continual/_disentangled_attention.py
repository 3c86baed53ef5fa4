"""Logits of content and of looked-up positions, and what they pool, as one operator of torch.

It takes a few queries of a few heads after the other: what they look up, and the gradients of
their logits, exist for these alone, and are computed again in the backward. So are the logits, if
nobody asks for them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn_continual._disentangled_logits import (
    Chunk,
    DisentangledCall,
    Gradients,
    HeadGradients,
    Heads,
    Place,
    chunks,
    heads_at_once,
    logits_of,
)
from attn_ops.fmha import (
    memory_efficient_attention_backward,
    memory_efficient_attention_forward_requires_grad,
)

_SCHEMA = (
    "Tensor query, Tensor key, Tensor? value, Tensor? key_table, Tensor? query_table, "
    "Tensor? head_bias, Tensor? base, Tensor? positions, Tensor? no_position, Tensor? keep, "
    "Tensor? dropout_seed, float scale, float p, bool has_content, bool transposes, "
    "bool keeps_logits"
)
_NUM_DIFFERENTIABLE = 7


def disentangled_attention(call: DisentangledCall) -> tuple[Tensor, Tensor]:
    """Return logits [n, h, q, k] and outputs [n, q, H, v].

    There are no logits, [n, h, 0, k], if the call keeps none, and no outputs without values.
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
    number = 0
    with torch.autocast(call.query.device.type, enabled=False):
        for at in heads_at_once(call):
            number = _attend_heads(call, at, number, (logits, pooled, lse))
    return logits, pooled, lse


def _attend_heads(
    call: DisentangledCall, at: Place, number: int, results: tuple[Tensor, Tensor, Tensor]
) -> int:
    """Write the results of some heads, whose first chunk has a number; return the next one's."""
    logits, pooled, lse = results
    of = Heads.read(call, at)
    for chunk in chunks(call, of, number):
        found = logits_of(call, of, chunk)
        if call.keeps_logits:
            found = found.to(logits.dtype)
            logits[of.samples, of.heads, chunk.queries] = found
        if (pooling := _pooling(call, of, chunk, found)) is not None:
            out, out_lse = memory_efficient_attention_forward_requires_grad(
                *pooling.operands, **pooling.options
            )
            pooled[of.samples, chunk.queries, pooling.heads] = out
            lse[of.samples, pooling.heads, chunk.queries] = out_lse
        number = chunk.number + 1
    return number


@_forward.register_fake
def _allocate(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
    call = DisentangledCall(*arguments)
    (samples, queries, heads, _), keys = call.query.shape, call.key.shape[1]
    pooled_heads, width = (0, 0) if call.value is None else call.value.shape[2:]
    new = call.query.new_empty
    kept = queries if call.keeps_logits else 0
    return (
        new(samples, heads, kept, keys, dtype=call.logits_dtype),
        new(samples, queries, pooled_heads, width, dtype=call.query.dtype),
        new(samples, pooled_heads, queries, dtype=call.compute_dtype),
    )


class Pooling(NamedTuple):
    """Attention whose scores are the logits: of queries and keys that are zeros."""

    heads: slice
    """Among those that have values."""
    first: int
    """The first of them among the heads of the piece."""
    operands: tuple[Tensor, Tensor, Tensor]
    options: dict[str, Any]


def _pooling(call: DisentangledCall, of: Heads, chunk: Chunk, logits: Tensor) -> Pooling | None:
    """Return what logits [n, h, queries, k] pool, or None."""
    if call.value is None:
        return None
    extra = call.query.shape[2] - call.value.shape[2]
    begin = max(of.heads.start, extra)
    if begin >= of.heads.stop:
        return None
    heads = slice(begin - extra, of.heads.stop - extra)
    first = begin - of.heads.start
    bias = logits[:, first:].to(call.compute_dtype)
    if call.keep is not None:
        bias = bias.masked_fill(~chunk.part(call.keep, of._replace(heads=heads)), -torch.inf)
    value = call.value[of.samples, :, heads].to(call.compute_dtype)
    samples, count, queries, keys = bias.shape
    operands = (
        value.new_zeros(samples, queries, count, 1),
        value.new_zeros(samples, keys, count, 1),
        value,
    )
    seed = call.dropout_seed
    if seed is not None:
        seed = seed + seed.new_tensor([chunk.number, 0])
    options = {"attn_bias": bias, "p": call.p, "scale": 1.0, "dropout_seed": seed}
    return Pooling(heads, first, operands, options)


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
    results = (grad_pooled, logits, pooled, lse)
    number = 0
    with torch.autocast(call.query.device.type, enabled=False):
        for at in heads_at_once(call):
            number = _differentiate_heads(call, at, number, grads, grad_logits, results)
    pairs = zip(grads, arguments[:_NUM_DIFFERENTIABLE], strict=True)
    return [grad.to(x.dtype) for grad, x in pairs if grad is not None]


def _differentiate_heads(
    call: DisentangledCall,
    at: Place,
    number: int,
    grads: Gradients,
    grad_logits: Tensor | None,
    results: tuple[Tensor | None, Tensor, Tensor, Tensor],
) -> int:
    """Add what some heads make of the gradients; numbers as for `_attend_heads`.

    results: the gradient of the outputs, or None, the logits, the outputs and their LSE.
    """
    of = Heads.read(call, at, wants_logits=not call.keeps_logits)
    sums = HeadGradients(call, of, grads)
    for chunk in chunks(call, of, number):
        total = of.query.new_zeros(*of.query.shape[:2], chunk.size, call.key.shape[1])
        if grad_logits is not None and call.keeps_logits:
            total += grad_logits[of.samples, of.heads, chunk.queries]
        _add_pooling_gradients(call, of, chunk, total, grads, results)
        sums.add(chunk, total)
        number = chunk.number + 1
    sums.finish()
    return number


def _add_pooling_gradients(
    call: DisentangledCall,
    of: Heads,
    chunk: Chunk,
    total: Tensor,
    grads: Gradients,
    results: tuple[Tensor | None, Tensor, Tensor, Tensor],
) -> None:
    """Add to the gradients of a chunk's logits and of values; see `_differentiate_heads`."""
    grad_out, logits, out, lse = results
    if grad_out is None:
        return
    if call.keeps_logits:
        found = logits[of.samples, of.heads, chunk.queries]
    else:
        found = logits_of(call, of, chunk)
    pooling = _pooling(call, of, chunk, found)
    if pooling is None or grads.value is None:
        return
    here = (of.samples, chunk.queries, pooling.heads)
    *_, grad_value, grad_bias = memory_efficient_attention_backward(
        grad_out[here].to(total.dtype),
        out[here].to(total.dtype),
        lse[of.samples, pooling.heads, chunk.queries].contiguous(),
        *pooling.operands,
        **pooling.options,
        needs_bias_gradient=True,
    )
    total[:, pooling.first :] += grad_bias
    grads.value[of.samples, :, pooling.heads] += grad_value


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
