"""Causal attention by features: chunks of rows against the sums over all rows before them.

With phi(k_j) of weight w_j = exp(log_weight_j), row i's result is the quotient of the sums over
j <= i of (phi(q_i) . phi(k_j)) w_j v_j and of (phi(q_i) . phi(k_j)) w_j. Weights are relative to
the running maximum of those up to row i, so nothing after row i reaches it.

Shapes: as in `call`, and a block of rows is n chunks of C: [G, n, C, ...].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import Tensor

from attn_modules._features.call import FeatureCall, Keys, chunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHUNK_ROWS: Final = 64
"""Products within a chunk grow with it, and the share of what is done once a chunk shrinks."""

BLOCK_ROWS: Final = 1024
"""How many rows of all matrices together have their features in memory at a time."""

NO_WEIGHT: Final = -1e30
"""The logarithm of the greatest weight before any row: finite, as its differences must be."""


class PrefixState(NamedTuple):
    """What the keys and values so far amount to."""

    sums: Tensor
    """[G, E, m]: the sum of w_j v_j phi(k_j), with weights relative to the greatest."""
    log_scale: Tensor
    """[G]: the logarithm of the greatest weight."""


class _Weights(NamedTuple):
    """The weights of a block's keys, relative to running maxima, so that none exceeds 1."""

    within: Tensor
    """[G, n, C, C]: of key j for row i of its chunk; where j > i any number, even inf."""
    carried: Tensor
    """[G, n, C, 1]: of the sums before the chunk, for row i."""
    absorbed: Tensor
    """[G, n, C, 1]: of key j in the sums after its chunk."""
    kept: Tensor
    """[G, n, 1, 1]: of the sums before a chunk in those after it."""
    log_scale: Tensor
    """[G]: the running maximum after the block."""


def state_before(sums: Tensor) -> PrefixState:
    """Return the state before any row, for zeros [G, E, m]."""
    return PrefixState(sums, sums.new_full((sums.shape[0],), NO_WEIGHT))


def absorb(state: PrefixState, keys: Keys) -> PrefixState:
    """Return the state after some more keys, whose own sums are made first: they round less."""
    if keys.log_weight is None:
        return PrefixState(state.sums + keys.values.mT @ keys.phi, state.log_scale)
    log_scale = torch.maximum(state.log_scale, keys.log_weight.amax(-1))
    weighted = keys.values * (keys.log_weight - log_scale[:, None]).exp().unsqueeze(-1)
    carried = state.sums * (state.log_scale - log_scale).exp()[:, None, None]
    return PrefixState(carried + weighted.mT @ keys.phi, log_scale)


def causal_forward(call: FeatureCall, out: Tensor, total: Tensor) -> PrefixState:
    """Write the results [B, M, H, Kv] and divisors [B, M, H, 1]; return the last state."""
    state = state_before(call.empty_sums())
    for rows, n in _blocks(call):
        phi_q, keys = call.queries(rows).phi.unflatten(1, (n, -1)), _contained(call.keys(rows))
        weights = _weights(state.log_scale, keys.log_weight, n)
        phi_k, values = (x.unflatten(1, (n, -1)) for x in (keys.phi, keys.values))
        before, state = _scan(state, _times(values, weights, "absorbed").mT @ phi_k, weights)
        sums = _times((before @ phi_q.mT).mT, weights, "carried")
        sums += _causal_product(phi_q, phi_k, weights) @ values
        call.write_quotient(rows, sums.flatten(1, 2), out, total)
    return state


def causal_backward(
    call: FeatureCall, out: Tensor, total: Tensor, grad_out: Tensor, grads: Sequence[Tensor]
) -> None:
    """Write the gradients to q, k and v, from the results, the divisors and the gradient to `out`.

    Gradients to queries need sums over the rows before, those to keys and values sums over the
    rows after: two sweeps, which compute features again instead of keeping M x m of them.
    """
    grad_q, grad_k, grad_v = grads
    scales = _sweep_down(call, out, total, grad_out, grad_q)
    _sweep_up(call, out, total, grad_out, (grad_k, grad_v), scales)


def _sweep_down(
    call: FeatureCall, out: Tensor, total: Tensor, grad_out: Tensor, grad_q: Tensor
) -> list[Tensor]:
    """Write the gradient to q; return the log_scale [G] before each block."""
    state = state_before(call.empty_sums())
    scales = []
    for rows, n in _blocks(call):
        scales.append(state.log_scale)
        queries, keys = call.queries(rows), call.keys(rows)
        weights = _weights(state.log_scale, keys.log_weight, n)
        grad_sums = call.grad_quotient(rows, out, total, grad_out).unflatten(1, (n, -1))
        phi_k, values = (x.unflatten(1, (n, -1)) for x in (keys.phi, keys.values))
        before, state = _scan(state, _times(values, weights, "absorbed").mT @ phi_k, weights)
        grad_phi = _times(grad_sums, weights, "carried") @ before
        grad_phi += _causal_product(grad_sums, values, weights) @ phi_k
        call.grad_queries(rows, queries, grad_phi.flatten(1, 2), grad_q)
    return scales


def _sweep_up(
    call: FeatureCall,
    out: Tensor,
    total: Tensor,
    grad_out: Tensor,
    grads: Sequence[Tensor],
    scales: list[Tensor],
) -> None:
    """Write the gradients to k and v, from the last block to the first.

    The sums are of phi(q_i) times the gradient to row i's sums over all rows i after a chunk,
    relative to the running maximum at the chunk's end, which none of theirs is below.
    """
    grad_k, grad_v = grads
    later = state_before(call.empty_sums())
    for (rows, n), log_scale in reversed(list(zip(_blocks(call), scales, strict=True))):
        queries, keys = call.queries(rows), call.keys(rows)
        weights = _weights(log_scale, keys.log_weight, n)
        grad_sums = call.grad_quotient(rows, out, total, grad_out).unflatten(1, (n, -1))
        phi_q, phi_k, values = (
            x.unflatten(1, (n, -1)) for x in (queries.phi, keys.phi, keys.values)
        )
        gained = _times(grad_sums, weights, "carried").mT @ phi_q
        after, later = _scan(later, gained, weights, reverse=True)
        grad_values = _times((after @ phi_k.mT).mT, weights, "absorbed")
        grad_values += _causal_product(phi_q, phi_k, weights).mT @ grad_sums
        grad_phi = _times(values, weights, "absorbed") @ after
        grad_phi += _causal_product(grad_sums, values, weights).mT @ phi_q
        grad_values = grad_values.flatten(1, 2)
        call.grad_keys(rows, keys, grad_phi.flatten(1, 2), grad_values, grad_k)
        call.grad_values(rows, grad_values, grad_v)


def _blocks(call: FeatureCall) -> Iterator[tuple[slice, int]]:
    """Yield the rows of each block and how many chunks they are; the last chunk may be short."""
    batch, rows, heads, _ = call.q.shape
    whole = rows - rows % CHUNK_ROWS
    block = CHUNK_ROWS * max(1, BLOCK_ROWS // (CHUNK_ROWS * max(1, batch * heads)))
    for part in chunks(whole, block):
        yield part, (part.stop - part.start) // CHUNK_ROWS
    if whole < rows:
        yield slice(whole, rows), 1


def _weights(log_scale: Tensor, log_weight: Tensor | None, n: int) -> _Weights | None:
    """Return the weights of a block after `log_scale` [G], or None if all are 1."""
    if log_weight is None:
        return None
    running = torch.maximum(log_weight.cummax(-1).values, log_scale[:, None])
    log_weight, running = log_weight.unflatten(1, (n, -1)), running.unflatten(1, (n, -1))
    ends = running[..., -1:]
    starts = torch.cat((log_scale[:, None, None], ends[:, :-1]), 1)
    within = (log_weight[:, :, None, :] - running[..., None]).exp_()
    carried, absorbed = (starts - running).exp_(), (log_weight - ends).exp_()
    kept = (starts - ends).exp_()
    return _Weights(
        within,
        carried[..., None],
        absorbed[..., None],
        kept[..., None],
        ends[:, -1, 0].contiguous(),
    )


def _times(x: Tensor, weights: _Weights | None, name: str) -> Tensor:
    """Return x [G, n, C, ...] times those weights."""
    return x if weights is None else x * getattr(weights, name)


def _causal_product(left: Tensor, right: Tensor, weights: _Weights | None) -> Tensor:
    """Return left_i . right_j times row i's weight of key j, 0 where j > i: [G, n, C, C]."""
    product = left @ right.mT
    if weights is not None:
        product *= weights.within
    return product.tril_()


def _scan(
    state: PrefixState, gained: Tensor, weights: _Weights | None, *, reverse: bool = False
) -> tuple[Tensor, PrefixState]:
    """Return the sums [G, n, E, m] that each chunk meets and the state after the block.

    gained [G, n, E, m]: what each chunk adds. In reverse, the last chunk comes first.
    """
    n = gained.shape[1]
    met = torch.empty_like(gained)
    sums = state.sums
    for chunk in reversed(range(n)) if reverse else range(n):
        met[:, chunk] = sums
        added = gained[:, chunk]
        sums = (
            added + sums if weights is None else torch.addcmul(added, sums, weights.kept[:, chunk])
        )
    return met, PrefixState(sums, state.log_scale if weights is None else weights.log_scale)


def _contained(keys: Keys) -> Keys:
    """Return keys whose values are finite, and whose first feature is NaN where they were not.

    A row's weight of a later key is 0, but 0 times a value that is not finite would reach it.
    """
    keys.phi[..., :1] += (keys.values * 0).sum(-1, keepdim=True)
    return keys._replace(values=keys.values.nan_to_num(0.0, 0.0, 0.0))
