"""Attention by features where every query sees every key: one sum over the keys, read by all.

Shapes: as in `call`; weights are relative to the greatest of all keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attn_modules._features.call import FeatureCall, chunks
from attn_modules._features.prefix_sums import PrefixState, absorb, state_before

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

CHUNK_ROWS: Final = 256
"""Few enough that the features of a chunk stay in a cache."""


def total_forward(call: FeatureCall, out: Tensor, total: Tensor) -> PrefixState:
    """Write the results [B, Mq, H, Kv] and divisors [B, Mq, H, 1]; return the state of all keys."""
    state = state_before(call.empty_sums())
    for rows in chunks(call.k.shape[1], CHUNK_ROWS):
        state = absorb(state, call.keys(rows))
    for rows in chunks(out.shape[1], CHUNK_ROWS):
        call.write_quotient(rows, call.queries(rows).phi @ state.sums.mT, out, total)
    return state


def total_backward(
    call: FeatureCall,
    state: PrefixState,
    out: Tensor,
    total: Tensor,
    grad_out: Tensor,
    grads: Sequence[Tensor],
) -> None:
    """Write the gradients to q, k and v, from what the forward pass returned and wrote."""
    grad_q, grad_k, grad_v = grads
    grad_state = call.empty_sums()
    for rows in chunks(out.shape[1], CHUNK_ROWS):
        queries = call.queries(rows)
        grad_sums = call.grad_quotient(rows, out, total, grad_out)
        grad_state += grad_sums.mT @ queries.phi
        call.grad_queries(rows, queries, grad_sums @ state.sums, grad_q)
    for rows in chunks(call.k.shape[1], CHUNK_ROWS):
        keys = call.keys(rows)
        values, grad_values = keys.values, keys.phi @ grad_state.mT
        if keys.log_weight is not None:
            weight = (keys.log_weight - state.log_scale[:, None]).exp().unsqueeze(-1)
            values, grad_values = values * weight, grad_values * weight
        call.grad_keys(rows, keys, values @ grad_state, grad_values, grad_k)
        call.grad_values(rows, grad_values, grad_v)
