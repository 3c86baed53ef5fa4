"""Steps of attention: append to ring buffers of keys and values, and attend to what they hold.

`attention_step_` takes rows by head, `multihead_attention_step_` what a layer projects them from.
"""

import re

import torch
from torch import Tensor

from attn_ops._autograd import is_differentiated
from attn_ops._step_op import attention_step, multihead_attention_step
from attn_ops.refusals import refusal_of_core
from attn_ops.scalars import plain_number


def attention_step_(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_ring: Tensor,
    value_ring: Tensor,
    position: Tensor,
    window: int | None = None,
    *,
    padding: Tensor | None = None,
    padding_ring: Tensor | None = None,
    active: Tensor | None = None,
    attn_bias: Tensor | None = None,
    scale: float | None = None,
    extra_key: Tensor | None = None,
    extra_value: Tensor | None = None,
    query_ring: Tensor | None = None,
) -> Tensor:
    """Take the next step of B streams: append each one's key and value, and attend to the last.

    Step p of a stream lies in slot p % R of its rings. A stream that has seen position[b] steps
    before gets this step's rows into slot position[b] % R and 1 added to position[b], in place;
    its query then sees the last `window` steps of those that there are. Nothing is moved: the cost
    is that of attention over R keys, at any position.

    Shapes: query [B, 1, Hq, K]; key [B, 1, Hkv, K]; value [B, 1, Hkv, Kv]; key_ring
        [B, R, Hkv, K]; value_ring [B, R, Hkv, Kv]; position int64 [B]; result [B, 1, Hq, Kv]. Hq
        is a multiple of Hkv: query head h reads key head h // (Hq // Hkv).
    Dtypes: query, key, value, their rings and the result alike: float32, bfloat16, float16 or
        float64.
    window: steps that a query sees, its own among them; in [1, R], default R.
    padding, padding_ring: bool [B] and [B, R]: True hides this step's key, and what each slot
        holds. The flag goes into its slot too; without `padding` it is False.
    active: bool [B]: the other streams take no step. Nothing of theirs is written, their result
        is 0.
    attn_bias: of 4 axes, broadcastable to [B, Hq, 1, window], in the dtype of query or float32:
        added to the scaled scores of the window's keys in the order of time, the newest last. Or
        bool: True keeps a key.
    scale: of the scores, default K ** -0.5.
    extra_key, extra_value: [E, Hkv, K] and [E, Hkv, Kv], rows of the dtype of the others that every
        query sees besides, at no place in time: neither `window`, `padding` nor `attn_bias` counts
        for them. A stream that takes no step has their result alone.
    query_ring: [B, D, Hq, K], queries that wait for the keys after them: the query that attends is
        that of D steps ago, from slot position[b] % D, where this step's is put. It sees what this
        step's would. In the first D steps of a stream, what the ring held attends.
    Numerics: those of `memory_efficient_attention`. A stream gives the same bits in any batch.
    Raises: ValueError, naming the argument, if shapes, dtypes, strides or positions do not fit;
        then nothing is written. TypeError if `scale` is no number. NotImplementedError for tensors
        on neither CPU nor CUDA, or where a gradient is wanted: autograd cannot look back at what
        a ring held.
    """
    if window is None:
        window = _slots(key_ring)
    tensors = (query, key, value, key_ring, value_ring, attn_bias, extra_key, extra_value)
    _refuse_gradients("attention_step_", *tensors, query_ring)
    try:
        return attention_step(
            query,
            key,
            value,
            key_ring,
            value_ring,
            position,
            window,
            padding,
            padding_ring,
            active,
            attn_bias,
            _plain_scale("attention_step_", scale),
            extra_key,
            extra_value,
            query_ring,
        )
    except RuntimeError as error:
        raise _in_users_terms("attention_step_", error) from None


def multihead_attention_step_(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    key_ring: Tensor,
    value_ring: Tensor,
    position: Tensor,
    window: int | None = None,
    *,
    padding: Tensor | None = None,
    padding_ring: Tensor | None = None,
    active: Tensor | None = None,
    attn_bias: Tensor | None = None,
    scale: float | None = None,
    extra_key: Tensor | None = None,
    extra_value: Tensor | None = None,
    query_ring: Tensor | None = None,
) -> Tensor:
    """Take the next step of a multi-head attention layer, projections and all, of B streams.

    Projects x to a query, a key and a value per head, takes `attention_step_` with them, and
    projects its result: in one call, for a step takes no longer than a few calls from Python do.

    Shapes: x [B, E]; in_weight [Hq K + Hkv K + Hkv Kv, E], the weights of query, key and value
        stacked, head by head, as `nn.MultiheadAttention.in_proj_weight` is; in_bias one number for
        each of its rows; out_weight [F, Hq Kv]; out_bias [F]; key_ring [B, R, Hkv, K]; value_ring
        [B, R, Hkv, Kv]; position int64 [B]; result [B, F]. Hq is a multiple of Hkv.
    Dtypes: x, weights, biases, rings and the result alike: float32, bfloat16, float16 or float64.
    window, padding, padding_ring, active, attn_bias, scale, extra_key, extra_value, query_ring: as
        for `attention_step_`. A stream that takes no step has out_bias for its result, and what
        extra rows give.
    Numerics: sums in float32 (float64 for float64); what is handed on between projections and
        attention is of x's dtype. A stream gives the same bits in any batch.
    Raises: as `attention_step_` does; NotImplementedError for all tensors that are not on the CPU.
    """
    if window is None:
        window = _slots(key_ring)
    weights = (in_weight, in_bias, out_weight, out_bias)
    tensors = (x, *weights, key_ring, value_ring, attn_bias, extra_key, extra_value)
    _refuse_gradients("multihead_attention_step_", *tensors, query_ring)
    try:
        return multihead_attention_step(
            x,
            in_weight,
            in_bias,
            out_weight,
            out_bias,
            key_ring,
            value_ring,
            position,
            window,
            padding,
            padding_ring,
            active,
            attn_bias,
            _plain_scale("multihead_attention_step_", scale),
            extra_key,
            extra_value,
            query_ring,
        )
    except RuntimeError as error:
        raise _in_users_terms("multihead_attention_step_", error) from None


def _slots(key_ring: Tensor) -> int:
    """Return R, or of a ring that the operator refuses, by its name, some number."""
    return key_ring.shape[1] if key_ring.dim() > 1 else 1


def _plain_scale(who: str, scale: float | None) -> float | None:
    return None if scale is None else plain_number(who, "a number or None as scale", scale)


def _refuse_gradients(who: str, *tensors: Tensor | None) -> None:
    if torch.compiler.is_compiling() or not is_differentiated(*tensors):
        return
    raise NotImplementedError(
        f"{who}: expected a call without gradients, got a tensor that requires one; call under "
        "torch.no_grad, or use memory_efficient_attention on keys of your own"
    )


def _in_users_terms(who: str, error: RuntimeError) -> Exception:
    """Return what to raise for an error of the operator."""
    refusal = refusal_of_core(error)
    if refusal is None:
        return error
    text = re.sub(r"\bbias\b", "attn_bias", refusal)
    return ValueError(f"{who}: {text}")
