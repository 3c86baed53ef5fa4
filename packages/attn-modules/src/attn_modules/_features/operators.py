"""Attention by features as operators of torch, so that compiled and exported graphs hold one node.

Their loops over chunks run eagerly inside; see `prefix_sums` and `total_sums`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from attn_modules._differentiable import differentiable
from attn_modules._features.arithmetic import Kind, count_features
from attn_modules._features.call import FeatureCall
from attn_modules._features.prefix_sums import PrefixState, causal_backward, causal_forward
from attn_modules._features.total_sums import total_backward, total_forward
from attn_ops.operands import working_dtype

_FORWARD: Final = "attn_modules::feature_attention"
_BACKWARD: Final = "attn_modules::feature_attention_backward"

# Not `torch.library.custom_op`, whose first call imports torch's compiler: a second or more.
torch.library.define(
    _FORWARD,
    "(Tensor q, Tensor k, Tensor v, Tensor? keep, Tensor? projection, str kind, float scale, "
    "bool causal) -> (Tensor out, Tensor total, Tensor sums, Tensor log_scale)",
)
torch.library.define(
    _BACKWARD,
    "(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor? keep, Tensor? projection, "
    "Tensor out, Tensor total, Tensor sums, Tensor log_scale, str kind, float scale, "
    "bool causal) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)",
)
_operators: Final = torch.ops.attn_modules


class Result(NamedTuple):
    """What `feature_attention` returns."""

    out: Tensor
    """[B, Mq, H, Kv], of the dtype of q."""
    total: Tensor
    """[B, Mq, H, 1], float32 or float64: the divisors; 0 where a query sees no key."""
    sums: Tensor
    """[B * H, Kv + 1, m]: the state after the last key, without a gradient."""
    log_scale: Tensor
    """[B * H]: likewise."""


def feature_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor | None,
    projection: Tensor | None,
    *,
    kind: Kind,
    scale: float,
    causal: bool,
) -> Result:
    """Return the quotient of sum_j phi(q_i) . phi(k_j) v_j and sum_j phi(q_i) . phi(k_j).

    Shapes: q [B, Mq, H, K]; k [B, Mkv, H, K]; v [B, Mkv, H, Kv]; keep bool [B or 1, Mkv, H or 1,
        1], False is padding; projection [K, m or m / 2], without a gradient. If causal, Mq = Mkv.
    Cost: time O((Mq + Mkv) m (K + Kv)), and memory beyond inputs, results and gradients O(m Kv) and
        a chunk's features, forward and backward.
    Numerics: sums are kept in float32, in float64 for such inputs; a query without keys gives 0.
    Differentiable once in q, k and v; a second derivative raises NotImplementedError.
    """
    out, *state = _differentiable_forward(q, k, v, keep, projection, kind, scale, causal)
    return Result(out, *(x.detach() for x in state))


@torch.library.impl(_FORWARD, "CompositeExplicitAutograd")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor | None,
    projection: Tensor | None,
    kind: Kind,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = FeatureCall(q, k, v, keep, projection, kind, scale)
    out, total, _, _ = _allocate(q, k, v, keep, projection, kind, scale, causal)
    run = causal_forward if causal else total_forward
    with torch.autocast(q.device.type, enabled=False):
        sums, log_scale = run(call, out, total)
    return out, total, sums, log_scale


@torch.library.register_fake(_FORWARD)
def _allocate(
    q: Tensor,
    k: Tensor,  # noqa: ARG001  fake kernels have the operator's signature
    v: Tensor,
    keep: Tensor | None,  # noqa: ARG001
    projection: Tensor | None,
    kind: Kind,
    scale: float,  # noqa: ARG001
    causal: bool,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, queries, heads, _ = q.shape
    dtype = working_dtype(q.dtype)
    width = v.shape[-1]
    sums = (batch * heads, width + 1, count_features(kind, q, projection))
    return (
        q.new_empty(batch, queries, heads, width),
        q.new_empty(batch, queries, heads, 1, dtype=dtype),
        q.new_empty(sums, dtype=dtype),
        q.new_empty(sums[0], dtype=dtype),
    )


@torch.library.impl(_BACKWARD, "CompositeExplicitAutograd")
def _backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor | None,
    projection: Tensor | None,
    out: Tensor,
    total: Tensor,
    sums: Tensor,
    log_scale: Tensor,
    kind: Kind,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    call = FeatureCall(q, k, v, keep, projection, kind, scale)
    grads = (q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape))
    with torch.autocast(q.device.type, enabled=False):
        if causal:
            causal_backward(call, out, total, grad_out, grads)
        else:
            total_backward(call, PrefixState(sums, log_scale), out, total, grad_out, grads)
    return grads


@torch.library.register_fake(_BACKWARD)
def _allocate_gradients(
    grad_out: Tensor,  # noqa: ARG001
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *others: object,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(
    ctx: Any,  # noqa: ANN401  torch's own signature
    inputs: tuple[Any, ...],
    output: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    *tensors, ctx.kind, ctx.scale, ctx.causal = inputs
    ctx.save_for_backward(*tensors, *output)


def _refuse(ctx: object, *grad_outputs: object) -> None:
    raise NotImplementedError(
        "feature_attention: expected at most one derivative, got a request for a second, which has "
        "no operator"
    )


# Without a gradient of its own, the operator would lose a second derivative with a warning alone.
_operator_backward: Final = _operators.feature_attention_backward.default
_refusing_backward: Final = differentiable(_operator_backward, _refuse)


def _differentiate(
    ctx: Any,  # noqa: ANN401
    grad_out: Tensor,
    *_: Tensor,
) -> tuple[Tensor | None, ...]:
    # Dynamo traces no autograd function within another's backward pass.
    run = _operator_backward if torch.compiler.is_compiling() else _refusing_backward
    grads = run(grad_out, *ctx.saved_tensors, ctx.kind, ctx.scale, ctx.causal)
    return *grads, None, None, None, None, None


_differentiable_forward: Final = differentiable(
    _operators.feature_attention.default, _differentiate, _save
)
