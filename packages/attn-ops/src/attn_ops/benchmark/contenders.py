"""Each case as two calls to time: ours, and torch's SDPA in the layout it likes best."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import attn_ops
from attn_ops.benchmark.cases import Case

_BYTES_BEYOND_CACHES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Operands:
    """The inputs of one call: query [B, Hq, Mq, K]; key and value [B, Hkv, Mkv, K]; bias or None.

    `grad_out`, as the query, is there for a backward only.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    grad_out: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Operands":
        """Return the operands that `function` makes of these."""
        return Operands(
            query=function(self.query),
            key=function(self.key),
            value=function(self.value),
            bias=None if self.bias is None else function(self.bias),
            grad_out=None if self.grad_out is None else function(self.grad_out),
        )

    def transposed(self) -> "Operands":
        """Return contiguous copies as [B, M, H, K]; the bias stays as it is."""

        def transpose(tensor: Tensor) -> Tensor:
            return tensor.transpose(1, 2).clone(memory_format=torch.contiguous_format)

        return replace(self.map(transpose), bias=self.bias)


@dataclass(frozen=True)
class Contender:
    """One way to do a case's work."""

    name: str
    run: Callable[[], object]
    results: tuple[Tensor, ...]
    """The output of one call, or its gradients of query, key and value, each [B, H, M, K]."""
    threads: int | None = None
    """How many threads it runs on, if not those of the measurement."""


def make_operands(case: Case, seed: int = 0) -> Operands:
    """Draw the inputs of `case` from a normal distribution."""
    generator = torch.Generator().manual_seed(seed)

    def draw(heads: int, length: int, width: int) -> Tensor:
        return torch.randn(case.B, heads, length, width, generator=generator).to(case.dtype)

    return Operands(
        query=draw(case.Hq, case.Mq, case.K),
        key=draw(case.Hkv, case.Mkv, case.K),
        value=draw(case.Hkv, case.Mkv, case.K),
        bias=draw(case.Hq, case.Mq, case.Mkv) if case.bias else None,
        grad_out=draw(case.Hq, case.Mq, case.K) if case.kind == "backward" else None,
    )


def make_contenders(case: Case, operands: Operands) -> tuple[Contender, Contender]:
    """Return ours and the baseline of `case`, both run once."""
    run, results = _prepare(case, operands.transposed(), _attn_ops)
    results = tuple(result.transpose(1, 2) for result in results)
    if case.kind == "two threads":
        return (
            Contender("attn_ops, 2 threads", run, results, threads=2),
            Contender("attn_ops, 1 thread", run, results, threads=1),
        )
    return (
        Contender("attn_ops", run, results),
        Contender("SDPA", *_prepare(case, operands.map(torch.clone), _sdpa)),
    )


Call = Callable[[], Tensor]
Attention = Callable[[Case, Operands], Call]
"""Binds one call, so that nothing but the call itself is timed: a view costs as much as a small
attention."""


def _attn_ops(case: Case, operands: Operands) -> Call:
    """Bind ours to operands [B, M, H, K]."""
    bias = attn_ops.LowerTriangularMask() if case.causal else operands.bias
    return partial(
        attn_ops.memory_efficient_attention, operands.query, operands.key, operands.value, bias
    )


def _sdpa(case: Case, operands: Operands) -> Call:
    """Bind torch's to operands [B, H, M, K]."""
    return partial(
        scaled_dot_product_attention,
        operands.query,
        operands.key,
        operands.value,
        attn_mask=operands.bias,
        is_causal=case.causal,
        enable_gqa=case.Hq != case.Hkv,
    )


def _prepare(
    case: Case, operands: Operands, attention: Attention
) -> tuple[Callable[[], object], tuple[Tensor, ...]]:
    """Return the call to time, and its results."""
    if case.kind == "backward":
        return _prepare_backward(case, operands, attention)
    call = attention(case, operands)
    results = (call(),)
    if case.limit != "read":
        return call, results
    # Decoding meets keys that no cache holds: take turns with copies of them.
    copies = _BYTES_BEYOND_CACHES // case.key_value_bytes
    others = (attention(case, _with_own_keys(operands)) for _ in range(copies))
    turns = cycle([call, *others])

    def take_turn() -> Tensor:
        return next(turns)()

    return take_turn, results


def _prepare_backward(
    case: Case, operands: Operands, attention: Attention
) -> tuple[Callable[[], object], tuple[Tensor, ...]]:
    leaves = [operands.query, operands.key, operands.value]
    for leaf in leaves:
        leaf.requires_grad_()
    out = attention(case, operands)()
    run = partial(torch.autograd.grad, out, leaves, operands.grad_out, retain_graph=True)
    return run, run()


def _with_own_keys(operands: Operands) -> Operands:
    return replace(operands, key=operands.key.clone(), value=operands.value.clone())
