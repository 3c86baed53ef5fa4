"""Dense attention against torch's SDPA, each in the layout it likes best."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, bfloat16, dtype
from torch.nn.functional import scaled_dot_product_attention

import attn_ops
from attn_ops.benchmark.case import (
    NO_TARGET,
    Call,
    Contender,
    Contest,
    Limit,
    Target,
    beyond_caches,
    word,
)
from attn_ops.benchmark.check import Error, attend_eagerly, compare

Kind = Literal["forward", "backward", "decode", "call", "two threads"]
"""decode: one query, so that reading the keys is the work. call: so small that the call itself is.
two threads: a forward, compared not with SDPA but with ours on one thread."""

_CHECKED_ROWS = 8  # of each head, in a forward


@dataclass(frozen=True)
class DenseCase:
    """One call on random inputs: query [B, Mq, Hq, K]; key and value [B, Mkv, Hkv, K]."""

    kind: Kind
    dtype: dtype
    Mq: int
    Mkv: int
    K: int
    Hq: int = 8
    Hkv: int = 8
    B: int = 1
    causal: bool = False
    bias: bool = False
    """Whether one of the inputs' dtype, [B, Hq, Mq, Mkv], is added."""
    target: Target = NO_TARGET

    @property
    def name(self) -> str:
        """Return what sets this case apart."""
        words = [self.kind, word(self.dtype)]
        words += [f"B{self.B}"] if self.B > 1 else []
        words += [f"M{self.Mkv}", f"H{self.Hq}"]
        words += [f"Hkv{self.Hkv}"] if self.Hkv != self.Hq else []
        words += [f"K{self.K}"]
        words += ["causal"] if self.causal else []
        words += ["bias"] if self.bias else []
        return " ".join(words)

    @property
    def baseline(self) -> str:
        """Return what ours is compared with."""
        return "ours, 1 thread" if self.compares_threads else "SDPA"

    @property
    def compares_threads(self) -> bool:
        """Return whether it sets numbers of threads itself."""
        return self.kind == "two threads"

    @property
    def limit(self) -> Limit | None:
        """Return the ceiling that bounds this case."""
        if self.kind == "call":
            return None
        if self.kind == "decode":
            return "read"
        return "bfloat16" if self.dtype == bfloat16 else "float32"

    @property
    def work(self) -> float:
        """Return what the ceiling counts: bytes of keys and values, or floating-point operations.

        Only the products are counted, and of them only what the mask leaves.
        """
        if self.limit == "read":
            return self._key_value_bytes
        seen = self.Mq * (self.Mq + 1) / 2 if self.causal else self.Mq * self.Mkv
        products = 5 if self.kind == "backward" else 2
        return products * 2 * self.B * self.Hq * seen * self.K

    @property
    def _key_value_bytes(self) -> int:
        return 2 * self.B * self.Mkv * self.Hkv * self.K * self.dtype.itemsize

    def shrunk(self) -> "DenseCase":
        """Return the same case without a target, small enough to try everything in seconds."""
        Mq, Mkv = min(self.Mq, 128), min(self.Mkv, 128)
        return replace(self, B=min(self.B, 2), Mq=Mq, Mkv=Mkv, target=NO_TARGET)

    def prepare(self) -> Contest:
        """Make random inputs, check the result that ours gives, and bind the calls."""
        operands = self._operands()
        run, results = self._bind(operands.transposed(), _attn_ops)
        error = _check(self, operands, [result.transpose(1, 2) for result in results])
        if self.compares_threads:
            return Contest(Contender(run, threads=2), Contender(run, threads=1), error)
        baseline, _ = self._bind(operands.map(torch.clone), _sdpa)
        return Contest(Contender(run), Contender(baseline), error)

    def _operands(self) -> "Operands":
        generator = torch.Generator().manual_seed(0)

        def draw(heads: int, length: int, width: int) -> Tensor:
            return torch.randn(self.B, heads, length, width, generator=generator).to(self.dtype)

        return Operands(
            query=draw(self.Hq, self.Mq, self.K),
            key=draw(self.Hkv, self.Mkv, self.K),
            value=draw(self.Hkv, self.Mkv, self.K),
            bias=draw(self.Hq, self.Mq, self.Mkv) if self.bias else None,
            grad_out=draw(self.Hq, self.Mq, self.K) if self.kind == "backward" else None,
        )

    def _bind(
        self, operands: "Operands", attention: "Attention"
    ) -> tuple[Callable[[], object], tuple[Tensor, ...]]:
        """Return the call to time, and its results: the output, or the gradients."""
        if self.kind == "backward":
            leaves = [operands.query, operands.key, operands.value]
            for leaf in leaves:
                leaf.requires_grad_()
            out = attention(self, operands)()
            run = partial(torch.autograd.grad, out, leaves, operands.grad_out, retain_graph=True)
            return run, run()
        call = attention(self, operands)
        results = (call(),)
        if self.limit != "read":
            return call, results

        def bind_to_own_keys() -> Call:
            key, value = operands.key.clone(), operands.value.clone()
            return attention(self, replace(operands, key=key, value=value))

        return beyond_caches(bind_to_own_keys, self._key_value_bytes), results


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


Attention = Callable[[DenseCase, Operands], Callable[[], Tensor]]


def _attn_ops(case: DenseCase, operands: Operands) -> Callable[[], Tensor]:
    """Bind ours to operands [B, M, H, K]."""
    bias = attn_ops.LowerTriangularMask() if case.causal else operands.bias
    return partial(
        attn_ops.memory_efficient_attention, operands.query, operands.key, operands.value, bias
    )


def _sdpa(case: DenseCase, operands: Operands) -> Callable[[], Tensor]:
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


def _check(case: DenseCase, operands: Operands, results: list[Tensor]) -> Error:
    """Compare `results` with float64, allowing 2 times (gradients: 3 times) the error of eager.

    A backward is checked in all of the last head, any other in a few rows of every head.
    """
    if case.kind != "backward":
        rows = torch.linspace(0, case.Mq - 1, min(case.Mq, _CHECKED_ROWS)).long()
        bias = None if operands.bias is None else operands.bias[:, :, rows]
        subject = replace(operands, query=operands.query[:, :, rows], bias=bias)
        exact = (_attend(subject.map(Tensor.double), rows, case.causal),)
        eager = (_attend(subject, rows, case.causal),)
        return compare([results[0][:, :, rows]], exact, eager, factor=2)
    subject = operands.map(lambda tensor: tensor[-1:, -1:])
    exact = _gradients(subject.map(Tensor.double), case.causal)
    eager = _gradients(subject, case.causal)
    return compare([gradient[-1:, -1:] for gradient in results], exact, eager, factor=3)


def _attend(operands: Operands, rows: Tensor, causal: bool) -> Tensor:
    """Return [B, Hq, len(rows), K]; operands.query and bias hold only these rows."""
    added = operands.bias
    if causal:
        hidden = torch.arange(operands.key.shape[2]) > rows.unsqueeze(1)
        band = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
        added = band if added is None else added + band
    return attend_eagerly(operands.query, operands.key, operands.value, added)


def _gradients(operands: Operands, causal: bool) -> tuple[Tensor, ...]:
    operands = operands.map(Tensor.detach)
    leaves = [operands.query, operands.key, operands.value]
    for leaf in leaves:
        leaf.requires_grad_()
    out = _attend(operands, torch.arange(operands.query.shape[2]), causal)
    return torch.autograd.grad(out, leaves, operands.grad_out)
