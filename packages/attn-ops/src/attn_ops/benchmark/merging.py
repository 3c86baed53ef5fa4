"""`merge_attentions` against eager torch: all of its work is reading and writing memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, dtype

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
from attn_ops.benchmark.check import compare
from attn_ops.fmha import merge_attentions

Merge = Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class MergeCase:
    """Chunks [1, M, H, K] with LSEs [1, H, M] in float32, merged with the LSE as output too."""

    dtype: dtype
    chunks: int = 8
    M: int = 2048
    H: int = 8
    K: int = 128
    target: Target = NO_TARGET

    baseline = "eager torch"
    compares_threads = False
    limit: Limit = "read"

    @property
    def name(self) -> str:
        """Return what sets this case apart."""
        return f"merge {word(self.dtype)} {self.chunks} chunks M{self.M} H{self.H} K{self.K}"

    @property
    def work(self) -> int:
        """Return the bytes read and written."""
        return (self.chunks + 1) * self.M * self.H * (self.K * self.dtype.itemsize + 4)

    def shrunk(self) -> "MergeCase":
        """Return the same case without a target, small enough to try everything in seconds."""
        return replace(self, M=min(self.M, 64), target=NO_TARGET)

    def prepare(self) -> Contest:
        """Make random inputs, check the result that ours gives, and bind the calls."""
        generator = torch.Generator().manual_seed(0)
        shape = (1, self.M, self.H, self.K)
        outs = [torch.randn(shape, generator=generator).to(self.dtype) for _ in range(self.chunks)]
        lses = [torch.randn(1, self.H, self.M, generator=generator) for _ in range(self.chunks)]
        exact = _merge_eagerly([x.double() for x in outs], [x.double() for x in lses])
        merged = [x for x in merge_attentions(outs, lses) if x is not None]
        error = compare(merged, exact, _merge_eagerly(outs, lses), factor=2)

        def contender(merge: Merge) -> Contender:
            def bind_to_own_chunks() -> Call:
                return partial(merge, [x.clone() for x in outs], [x.clone() for x in lses])

            return Contender(beyond_caches(bind_to_own_chunks, self.work))

        return Contest(contender(merge_attentions), contender(_merge_eagerly), error)


def _merge_eagerly(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    lse = torch.stack(list(lses)).logsumexp(0)
    total = torch.zeros(())
    for out, part in zip(outs, lses, strict=True):
        total = total + out * (part - lse).exp().transpose(1, 2).unsqueeze(-1)
    return total.to(outs[0].dtype), lse
