"""Attention in plain PyTorch and in the inputs' own dtype: the yardstick of the error rule."""

import torch
from torch import Tensor

from reference.philox import keep_factors
from reference.problem import Problem, Results


def attention(problem: Problem) -> Results:
    """Return what a user would compute: matmul, softmax, matmul, and autograd's gradients.

    The log-sum-exp alone is computed in float32 for 16-bit inputs, because ours is float32.
    """
    leaves = [
        x.detach().clone().requires_grad_() for x in (problem.query, problem.key, problem.value)
    ]
    bias = problem.mask.additive_bias
    if bias is not None:
        leaves.append(bias.detach().clone().requires_grad_())
    scores, seen = _scores(problem, *leaves)
    out = _weigh(problem, scores, seen, leaves[2])
    objective = (out * problem.grad_out).sum() + (_lse(scores, seen) * problem.grad_lse).sum(
        dtype=out.dtype
    )
    gradients = torch.autograd.grad(objective, leaves)

    if problem.query.dtype != _lse_dtype(problem):
        scores, seen = _scores(problem, *(x.detach().to(_lse_dtype(problem)) for x in leaves))
    return Results(
        out=out.detach(),
        lse=_lse(scores.detach(), seen).masked_fill(~seen.any(-1), -torch.inf),
        grad_query=gradients[0],
        grad_key=gradients[1],
        grad_value=gradients[2],
        grad_bias=gradients[3] if bias is not None else None,
    )


def _lse_dtype(problem: Problem) -> torch.dtype:
    return torch.float64 if problem.query.dtype == torch.float64 else torch.float32


def _scores(
    problem: Problem, query: Tensor, key: Tensor, _value: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the masked scores and which of them count: both [B, Hq, Mq, Mkv].

    Rows that see nothing get scores of 0, since PyTorch's softmax would make them NaN.
    """
    key = key.repeat_interleave(problem.groups, dim=2)
    scores = problem.scale * (query.transpose(1, 2) @ key.permute(0, 2, 3, 1))
    if bias is not None:
        scores = scores + bias
    seen = problem.mask.seen(query.shape[1], key.shape[1]).expand(scores.shape)
    scores = scores.masked_fill(~seen, -torch.inf)
    return scores.masked_fill(~seen.any(-1, keepdim=True), 0.0), seen


def _weigh(problem: Problem, scores: Tensor, seen: Tensor, value: Tensor) -> Tensor:
    mask = problem.mask
    probabilities = torch.softmax(scores, -1).masked_fill(~seen, 0.0)
    if mask.dropout_p > 0.0:
        batch, heads, num_queries, num_keys = scores.shape
        shape = (batch, heads, num_queries, num_keys)
        factors = keep_factors(shape, mask.dropout_p, mask.dropout_seed, mask.dropout_offset)
        probabilities = probabilities * factors.to(probabilities.dtype)
    value = value.repeat_interleave(problem.groups, dim=2).transpose(1, 2)
    return (probabilities.to(value.dtype) @ value).transpose(1, 2)


def _lse(scores: Tensor, seen: Tensor) -> Tensor:
    return torch.logsumexp(scores, -1).masked_fill(~seen.any(-1), 0.0)
