"""The forms of attention without autograd, and the partial one that returns its LSE as well.

All take the arguments of `memory_efficient_attention` with the same meaning. The LSE, the natural
logarithm of the sum of a query's exponentiated scores, is float32 (float64 for float64) and
[B, H, Mq]; [B, 1, Mq] for 3-D inputs, [B, G, H, Mq] for 5-D ones; for packed sequences B is 1 and
Mq counts the queries of all of them.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attn_ops import _choose
from attn_ops._attention import (
    attend_at_once,
    cast_under_autocast,
    draw_dropout,
    run,
    wants_gradient,
)
from attn_ops._autograd import attend, attend_with_lse, gradients
from attn_ops._canonical import (
    CanonicalInputs,
    canonical,
    restore_layout,
    restore_lse_layout,
)
from attn_ops._inputs import WHO, Inputs, check_is_tensor, checked
from attn_ops.mask import Dropout
from attn_ops.operands import working_dtype

if TYPE_CHECKING:
    from attn_ops.fmha.attn_bias import AttentionBias
    from attn_ops.fmha.operators import AttentionBwOpBase, AttentionFwOpBase, AttentionOp

__all__ = [
    "memory_efficient_attention_backward",
    "memory_efficient_attention_forward",
    "memory_efficient_attention_forward_requires_grad",
    "memory_efficient_attention_partial",
]


def memory_efficient_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: "Tensor | AttentionBias | None" = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: "type[AttentionFwOpBase] | None" = None,
    output_dtype: torch.dtype | None = None,
    sink: Tensor | None = None,
    softcap: float | None = None,
    dropout_seed: Tensor | None = None,
) -> Tensor:
    """Compute the output alone, unrecorded by autograd.

    Arguments, shapes and errors: as in `memory_efficient_attention`, except that `op` is one
    forward operator, and `dropout_seed` an int64 CPU tensor [2] that decides what is dropped; by
    default it is drawn from torch's CPU generator.
    """
    arguments = (query, key, value, attn_bias, p, scale, output_dtype)
    with torch.no_grad():
        if op is None and dropout_seed is None:
            out = attend_at_once(attend, *arguments, sink=sink, softcap=softcap)
            if out is not None:
                return out
        inputs = _checked(Inputs(*arguments, sink=sink, softcap=softcap))
        call = _prepare(inputs, op, dropout_seed)
        out = run(attend, inputs, *call, inputs.scale, output_dtype)
    return restore_layout(out, query)


def memory_efficient_attention_forward_requires_grad(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: "Tensor | AttentionBias | None" = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: "type[AttentionFwOpBase] | None" = None,
    output_dtype: torch.dtype | None = None,
    sink: Tensor | None = None,
    softcap: float | None = None,
    dropout_seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute (output, lse), from which `memory_efficient_attention_backward` takes the gradient.

    Arguments, shapes and errors: as in `memory_efficient_attention_forward`. With p > 0, pass the
    same `dropout_seed` here and to the backward, for example `torch.randint(2**62, (2,))`.

    >>> q, k, v = torch.randn(3, 1, 16, 8, 64).unbind()
    >>> seed = torch.randint(2**62, (2,))
    >>> options = {"p": 0.2, "dropout_seed": seed}
    >>> out, lse = memory_efficient_attention_forward_requires_grad(q, k, v, **options)
    >>> grad = torch.ones_like(out)
    >>> dq, dk, dv = memory_efficient_attention_backward(grad, out, lse, q, k, v, **options)
    >>> lse.shape, dq.shape
    (torch.Size([1, 8, 16]), torch.Size([1, 16, 8, 64]))
    """
    arguments = (query, key, value, attn_bias, p, scale, output_dtype)
    with torch.no_grad():
        inputs = _checked(Inputs(*arguments, sink=sink, softcap=softcap))
        call = _prepare(inputs, op, dropout_seed)
        return _attend_with_lse(call, inputs, output_dtype)


def memory_efficient_attention_backward(
    grad: Tensor,
    output: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: "Tensor | AttentionBias | None" = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: "type[AttentionBwOpBase] | None" = None,
    sink: Tensor | None = None,
    softcap: float | None = None,
    dropout_seed: Tensor | None = None,
    grad_lse: Tensor | None = None,
    needs_bias_gradient: bool = False,
) -> tuple[Tensor, ...]:
    """Compute the gradients (dq, dk, dv) of sum(grad * output) + sum(grad_lse * lse).

    Shapes: `output` and `lse` are the results of `memory_efficient_attention_forward_requires_grad`
        for the same arguments; grad as output; grad_lse as lse, default 0; the results as query,
        key and value. A key that repeats over H in 5-D gets a gradient for each of its heads.
    op: one backward operator, or None.
    dropout_seed: the one given to the forward; required if p > 0.
    needs_bias_gradient: return (dq, dk, dv, dbias); dbias is the gradient of `attn_bias`, a
        floating-point tensor [B or 1, Hq or 1, Mq or 1, Mkv or 1] beside a 4-D query, of its shape:
        summed over the axes of extent 1, not over those that `expand` repeats.
    Raises: as `memory_efficient_attention`; ValueError too if `grad`, `output` or `lse` do not fit
        the inputs, if `dropout_seed` is missing, or if there is no such `attn_bias`.
    """
    if needs_bias_gradient:
        _check_has_bias_gradient(query, attn_bias)
    if p and dropout_seed is None:
        raise ValueError(
            f"{WHO}_backward: expected the dropout_seed of the forward with p={p}, got None; draw "
            "one, such as torch.randint(2**62, (2,)), and pass it to both"
        )
    inputs = _checked(Inputs(query, key, value, attn_bias, p, scale, sink=sink, softcap=softcap))
    _choose.choose_backward(inputs, op)
    with torch.no_grad():
        call = canonical(
            inputs, _dropout(inputs.p, dropout_seed, query.device), merge_repeats=False
        )
        _check_results(inputs, grad, output, lse, grad_lse)
        found = run(
            gradients,
            inputs,
            _four_axes(grad.to(output.dtype)),
            _four_axes(output),
            _three_axes(lse),
            *call,
            inputs.scale,
            grad_lse=None if grad_lse is None else _three_axes(grad_lse),
            needed=(True, True, True, needs_bias_gradient),
        )
    dq, dk, dv, *dbias = [gradient for gradient in found if gradient is not None]
    return (
        *(restore_layout(dx, x) for dx, x in ((dq, query), (dk, key), (dv, value))),
        *dbias,
    )


def memory_efficient_attention_partial(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: "Tensor | AttentionBias | None" = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: "AttentionOp | type[AttentionFwOpBase] | None" = None,
    output_dtype: torch.dtype | None = None,
    sink: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute (output, lse) over some of the keys; `merge_attentions` joins it with the others.

    Differentiable through both results, whatever they are used for, so that partial attention and
    merging have the gradient of attention over all keys.

    Arguments, shapes and errors: as in `memory_efficient_attention`, except that `op` may also be
    a forward operator alone, and `output_dtype` is float32 by default (float64 for float64), so
    that merging rounds once. A `sink` counts in the LSE: give it to one of the parts only.

    >>> from attn_ops.fmha import merge_attentions
    >>> q, k, v = torch.randn(3, 1, 16, 8, 64).unbind()
    >>> parts = [memory_efficient_attention_partial(q, k[:, i::2], v[:, i::2]) for i in (0, 1)]
    >>> out, lse = merge_attentions(*zip(*parts))
    >>> out.shape, lse.shape
    (torch.Size([1, 16, 8, 64]), torch.Size([1, 8, 16]))
    """
    is_forward = isinstance(op, type)
    forward, backward = (op, None) if is_forward else _choose.split_pair(op)
    if output_dtype is None and isinstance(query, Tensor):
        output_dtype = working_dtype(query.dtype)
    arguments = (query, key, value, attn_bias, p, scale, output_dtype)
    if op is None:
        results = attend_at_once(attend_with_lse, *arguments, sink=sink, softcap=softcap)
        if results is not None:
            return results
    inputs = _checked(Inputs(*arguments, is_partial=True, sink=sink, softcap=softcap))
    call = _prepare(inputs, forward, None)
    if wants_gradient(call):
        _choose.choose_backward(inputs, backward)
    return _attend_with_lse(call, inputs, output_dtype)


def _checked(inputs: Inputs) -> Inputs:
    return checked(cast_under_autocast(inputs))


def _prepare(
    inputs: Inputs, op: "type[AttentionFwOpBase] | None", dropout_seed: Tensor | None
) -> CanonicalInputs:
    _choose.choose_forward(inputs, op)
    return canonical(inputs, _dropout(inputs.p, dropout_seed, inputs.query.device))


def _dropout(p: float, seed: Tensor | None, device: torch.device) -> Dropout:
    if seed is None:
        return draw_dropout(p, device)
    check_is_tensor("dropout_seed", seed)
    if seed.shape != (2,) or seed.dtype != torch.int64 or seed.device.type != "cpu":
        raise ValueError(
            f"{WHO}: expected dropout_seed int64 [2] on the CPU, a seed and an offset, got "
            f"{seed.dtype} {list(seed.shape)} on {seed.device}; draw torch.randint(2**62, (2,))"
        )
    return Dropout(p, seed.contiguous()) if p else Dropout()


def _attend_with_lse(
    call: CanonicalInputs, inputs: Inputs, output_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    out, lse = run(attend_with_lse, inputs, *call, inputs.scale, output_dtype)
    return restore_layout(out, inputs.query), restore_lse_layout(lse, inputs.query)


def _check_has_bias_gradient(query: Tensor, attn_bias: object) -> None:
    is_additive = isinstance(attn_bias, Tensor) and attn_bias.is_floating_point()
    if not is_additive or query.dim() != 4:
        given = attn_bias.dtype if isinstance(attn_bias, Tensor) else type(attn_bias).__name__
        raise ValueError(
            f"{WHO}_backward: expected a floating-point tensor attn_bias and a 4-D query with "
            f"needs_bias_gradient, got {given} and {list(query.shape)}"
        )


def _check_results(
    inputs: Inputs, grad: Tensor, output: Tensor, lse: Tensor, grad_lse: Tensor | None
) -> None:
    """Raise unless these are results of a forward with `inputs`, and their gradients."""
    query = inputs.query
    heads = query.shape[2:-1] or (1,)
    out_shape = (*query.shape[:-1], inputs.value.shape[-1])
    lse_shape = (query.shape[0], *heads, query.shape[1])
    lse_dtype = working_dtype(query.dtype)
    for name, tensor, shape in (
        ("grad", grad, out_shape),
        ("output", output, out_shape),
        ("lse", lse, lse_shape),
        ("grad_lse", grad_lse, lse_shape),
    ):
        if tensor is None:
            continue
        check_is_tensor(name, tensor)
        if tensor.shape != shape or tensor.device != query.device:
            raise ValueError(
                f"{WHO}_backward: expected {name} {list(shape)} on {query.device}, as the forward "
                f"of this query returns it, got {list(tensor.shape)} on {tensor.device}"
            )
        if "lse" in name and tensor.dtype != lse_dtype:
            raise ValueError(f"{WHO}_backward: expected {name} of {lse_dtype}, got {tensor.dtype}")


def _four_axes(tensor: Tensor) -> Tensor:
    """View a result in the user's layout as [B, M, H, K]."""
    if tensor.dim() == 3:
        return tensor.unsqueeze(2)
    return tensor.flatten(2, 3) if tensor.dim() == 5 else tensor


def _three_axes(lse: Tensor) -> Tensor:
    """View an LSE in the user's layout as [B, Hq, Mq]."""
    return lse.flatten(1, 2) if lse.dim() == 4 else lse
