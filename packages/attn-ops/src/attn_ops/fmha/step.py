"""`attention_step_`: append to ring buffers of keys and values, and attend to what they hold."""

import re

import torch
from torch import Tensor

from attn_ops._autograd import is_differentiated
from attn_ops._step_op import attention_step

_WHO = "attention_step_"


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
) -> Tensor:
    """Take the next step of B streams: append each one's key and value, and attend to the last.

    Step p of a stream lies in slot p % R of its rings. A stream that has seen position[b] steps
    before gets this step's rows into slot position[b] % R and 1 added to position[b], in place;
    its query then sees the last `window` steps of those that there are. Nothing is moved: the cost
    is that of attention over R keys, at any position.

    Shapes: query [B, 1, Hq, K]; key [B, 1, Hkv, K]; value [B, 1, Hkv, Kv]; key_ring
        [B, R, Hkv, K]; value_ring [B, R, Hkv, Kv]; position int64 [B]; result [B, 1, Hq, Kv]. Hq
        is a multiple of Hkv: query head h reads key head h // (Hq // Hkv).
    Dtypes: query, key, value, the rings and the result alike: float32, bfloat16, float16 or
        float64.
    window: steps that a query sees, its own among them; in [1, R], default R.
    padding, padding_ring: bool [B] and [B, R]: True hides this step's key, and what each slot
        holds. The flag goes into its slot too; without `padding` it is False.
    active: bool [B]: the other streams take no step. Nothing of theirs is written, their result
        is 0.
    attn_bias: broadcastable to [B, Hq, 1, window], in the dtype of query or float32: added to the
        scaled scores of the window's keys in the order of time, the newest last. Or bool: True
        keeps a key.
    scale: of the scores, default K ** -0.5.
    Numerics: those of `memory_efficient_attention`. A stream gives the same bits in any batch.
    Raises: ValueError, naming the argument, if shapes, dtypes, strides or positions do not fit;
        then nothing is written. NotImplementedError for tensors that are not on the CPU, or where
        a gradient is wanted: autograd cannot look back at what a ring held.
    """
    if window is None:
        window = key_ring.shape[1]
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling and is_differentiated(query, key, value, key_ring, value_ring, attn_bias):
        raise NotImplementedError(
            f"{_WHO}: expected a call without gradients, got a tensor that requires one; call "
            "under torch.no_grad, or use memory_efficient_attention on keys of your own"
        )
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
            scale,
        )
    except RuntimeError as error:
        raise _in_users_terms(error) from None


def _in_users_terms(error: RuntimeError) -> Exception:
    """Return what to raise for an error of the operator."""
    refusal = re.search(r"attn_step(?:_workspace)?: (.*)|step: (.*)", str(error))
    if refusal is None:
        return error
    text = re.sub(r"\bbias\b", "attn_bias", refusal[1] or refusal[2])
    return ValueError(f"{_WHO}: {text}")
