"""Attention from its formulas: dense, in float64, every gradient written out.

Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; Dao 2023, arXiv:2307.08691, section 2.2.
"""

import torch
from torch import Tensor

from reference.philox import keep_factors
from reference.problem import Problem, Results


def attention(problem: Problem) -> Results:
    """Return the exact results in float64.

    A query that sees no key gives out 0, lse -infinity and gradients 0. Every product is over all
    keys, excluded ones too: NaN there is the caller's to replace.
    """
    query = _heads_first(problem.query)
    key = _heads_first(problem.key).repeat_interleave(problem.groups, dim=1)
    value = _heads_first(problem.value).repeat_interleave(problem.groups, dim=1)
    grad_out = _heads_first(problem.grad_out)
    grad_lse = problem.grad_lse.double()

    probabilities, lse = _softmax(_masked_scores(problem, query, key))
    keep = _keep_factors(problem, probabilities)
    dropped = probabilities * keep
    out = dropped @ value

    grad_value = dropped.mT @ grad_out
    grad_probabilities = (grad_out @ value.mT) * keep
    mean = (grad_out * out).sum(-1, keepdim=True)
    grad_scores = probabilities * (grad_probabilities - mean + grad_lse.unsqueeze(-1))
    grad_query = problem.scale * (grad_scores @ key)
    grad_key = problem.scale * (grad_scores.mT @ query)

    return Results(
        out=out.transpose(1, 2),
        lse=lse,
        grad_query=grad_query.transpose(1, 2),
        grad_key=_sum_groups(grad_key, problem.groups),
        grad_value=_sum_groups(grad_value, problem.groups),
        grad_bias=_sum_to_bias(problem, grad_scores),
    )


def _heads_first(x: Tensor) -> Tensor:
    return x.double().transpose(1, 2)


def _masked_scores(problem: Problem, query: Tensor, key: Tensor) -> Tensor:
    scores = problem.scale * (query @ key.mT)
    bias = problem.mask.additive_bias
    if bias is not None:
        scores = scores + bias.double()
    return scores.masked_fill(~problem.mask.seen(query.shape[2], key.shape[2]), -torch.inf)


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probabilities and the log-sum-exp of each row."""
    if scores.shape[-1] == 0:
        return scores, scores.new_full(scores.shape[:-1], -torch.inf)
    largest = scores.amax(-1, keepdim=True)
    largest = largest.masked_fill(largest == -torch.inf, 0.0)
    exponentials = torch.exp(scores - largest)
    total = exponentials.sum(-1, keepdim=True)
    lse = (largest + torch.log(total)).squeeze(-1)
    return exponentials / total.masked_fill(total == 0.0, 1.0), lse


def _keep_factors(problem: Problem, probabilities: Tensor) -> Tensor:
    mask = problem.mask
    if mask.dropout_p == 0.0:
        return torch.ones_like(probabilities)
    batch, heads, num_queries, num_keys = probabilities.shape
    shape = (batch, heads, num_queries, num_keys)
    return keep_factors(shape, mask.dropout_p, mask.dropout_seed, mask.dropout_offset)


def _sum_groups(gradient: Tensor, groups: int) -> Tensor:
    """Sum [B, Hq, M, K] over the query heads of each key head: [B, M, Hkv, K]."""
    return gradient.unflatten(1, (-1, groups)).sum(2).transpose(1, 2)


def _sum_to_bias(problem: Problem, grad_scores: Tensor) -> Tensor | None:
    bias = problem.mask.additive_bias
    return None if bias is None else grad_scores.sum_to_size(bias.shape)
