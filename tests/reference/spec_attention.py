"""Attention under a whole `MaskSpec`, dense and by autograd: exact in float64, or as eager PyTorch.

The brute-force meaning of the mask is `mask_spec`; this adds softmax, sink, softcap and dropout.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attn_ops.mask import MaskSpec
from reference import mask_spec
from reference.philox import keep_factors


@dataclass(frozen=True)
class Call:
    """The inputs of a forward and of its backward, in canonical layouts."""

    query: Tensor
    key: Tensor
    value: Tensor
    spec: MaskSpec
    scale: float
    grad_out: Tensor
    grad_lse: Tensor

    def leaves(self, dtype: torch.dtype | None = None) -> tuple["Call", dict[str, Tensor]]:
        """Return the call over copies that want gradients, of `dtype` if given, by name."""
        spec = self.spec
        given = {
            "query": self.query,
            "key": self.key,
            "value": self.value,
            "bias": None if spec.bias is None or spec.bias.dtype == torch.bool else spec.bias,
            "slopes": spec.relative.slopes,
            "table": spec.relative.table,
            "sink": spec.sink,
        }
        copies = {
            name: x.detach().to(dtype or x.dtype, copy=True).requires_grad_()
            for name, x in given.items()
            if x is not None
        }
        relative = replace(spec.relative, slopes=copies.get("slopes"), table=copies.get("table"))
        bias = copies.get("bias", spec.bias)
        call = replace(
            self,
            query=copies["query"],
            key=copies["key"],
            value=copies["value"],
            spec=replace(spec, bias=bias, relative=relative, sink=copies.get("sink")),
        )
        return call, copies


def results(call: Call, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return out, lse and every gradient, computed in `dtype` by PyTorch."""
    ours, leaves = call.leaves(dtype)
    out, lse = attention(ours)
    objective = (out * ours.grad_out).sum() + (lse.nan_to_num(neginf=0.0) * ours.grad_lse).sum()
    gradients = torch.autograd.grad(objective, list(leaves.values()))
    named = {f"grad_{name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {"out": out.detach(), "lse": lse.detach(), **named}


def attention(call: Call) -> tuple[Tensor, Tensor]:
    """Return out and lse in the dtype of the query, differentiable in every floating tensor."""
    spec, dtype = call.spec, call.query.dtype
    B, Mq, Hq, _ = call.query.shape
    Mkv, groups = call.key.shape[1], Hq // call.key.shape[2]
    sizes = (B, Hq, Mq, Mkv)
    key, value = (
        x.repeat_interleave(groups, dim=2).transpose(1, 2) for x in (call.key, call.value)
    )
    scores = call.scale * (call.query.transpose(1, 2) @ key.mT)
    if spec.softcap:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    allowed = mask_spec.allowed(spec, *sizes)
    scores = scores + mask_spec.bias(spec, *sizes).to(dtype)
    scores = scores.masked_fill(~allowed, -torch.inf)
    counts = allowed.any(-1)
    if spec.sink is not None:
        inside = in_sequences(spec, Mq)
        sink = spec.sink.to(dtype)[:, None, None].expand(B, Hq, Mq, 1)
        scores = torch.cat([scores, sink.masked_fill(~inside[:, None], -torch.inf)], dim=-1)
        counts = counts | inside
    # Rows of -infinity alone would be NaN, also in the gradients.
    scores = scores.masked_fill(~counts.unsqueeze(-1), 0.0)
    probabilities = torch.softmax(scores, -1).masked_fill(~counts.unsqueeze(-1), 0.0)
    lse = torch.logsumexp(scores, -1).masked_fill(~counts, -torch.inf)
    dropped = probabilities[..., :Mkv] * keep(spec, *sizes).to(dtype)
    return (dropped @ value).transpose(1, 2), lse


def in_sequences(spec: MaskSpec, num_queries: int) -> Tensor:
    """Return whether each query row belongs to a sequence: bool [Mq]."""
    if spec.sequences is None:
        return torch.ones(num_queries, dtype=torch.bool)
    row, starts = torch.arange(num_queries), spec.sequences.q_start
    return (row >= starts[0]) & (row < starts[-1])


def keep(spec: MaskSpec, B: int, Hq: int, Mq: int, Mkv: int) -> Tensor:
    """Return dropout's factors: i is the row in memory, j the key within its sequence."""
    if spec.dropout.p == 0.0 or spec.dropout.seed is None:
        return torch.ones(B, Hq, Mq, Mkv)
    seed, offset = spec.dropout.seed.tolist()
    by_key = keep_factors((B, Hq, Mq, Mkv), spec.dropout.p, seed % 2**64, offset % 2**64)
    key = mask_spec.places(spec, Mq, Mkv).key.clamp(min=0)
    return by_key.gather(-1, key.expand(B, Hq, Mq, Mkv))
