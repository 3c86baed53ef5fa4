"""What is timed: the shapes, and how fast each should at least be on one thread."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import bfloat16, dtype, float16, float32

Kind = Literal["forward", "backward", "decode", "call", "two threads"]
"""decode: one query, so that reading the keys is the work. call: so small that the call itself is.
two threads: a forward, compared not with SDPA but with ours on one thread."""

Limit = Literal["float32", "bfloat16", "read"]


@dataclass(frozen=True)
class Target:
    """The least to reach on one thread; None where there is no such aim."""

    speedup: float | None = None
    """Times as fast as the baseline."""
    share: float | None = None
    """Of the ceiling, from 0 to 1."""


@dataclass(frozen=True)
class Case:
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
    target: Target = Target()

    @property
    def name(self) -> str:
        """Return what sets this case apart."""
        words = [self.kind, str(self.dtype).removeprefix("torch.")]
        words += [f"B{self.B}"] if self.B > 1 else []
        words += [f"M{self.Mkv}", f"H{self.Hq}"]
        words += [f"Hkv{self.Hkv}"] if self.Hkv != self.Hq else []
        words += [f"K{self.K}"]
        words += ["causal"] if self.causal else []
        words += ["bias"] if self.bias else []
        return " ".join(words)

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
            return self.key_value_bytes
        seen = self.Mq * (self.Mq + 1) / 2 if self.causal else self.Mq * self.Mkv
        products = 5 if self.kind == "backward" else 2
        return products * 2 * self.B * self.Hq * seen * self.K

    @property
    def key_value_bytes(self) -> int:
        """Return the bytes of key and value together."""
        return 2 * self.B * self.Mkv * self.Hkv * self.K * self.dtype.itemsize

    def shrunk(self) -> "Case":
        """Return the same case without a target, small enough to try everything in seconds."""
        Mq, Mkv = min(self.Mq, 128), min(self.Mkv, 128)
        return replace(self, B=min(self.B, 2), Mq=Mq, Mkv=Mkv, target=Target())


def _square(kind: Kind, of: dtype, M: int, K: int, target: Target, *, causal: bool = False) -> Case:
    return Case(kind, of, Mq=M, Mkv=M, K=K, causal=causal, target=target)


def _vit(kind: Kind, target: Target) -> Case:
    return Case(kind, bfloat16, B=8, Mq=197, Mkv=197, K=64, Hq=12, Hkv=12, target=target)


def _decode(of: dtype, Hkv: int) -> Case:
    return Case("decode", of, Mq=1, Mkv=8192, K=128, Hq=32, Hkv=Hkv, target=Target(share=0.8))


CASES = (
    _square("forward", bfloat16, 4096, 64, Target(4.0, share=0.65)),
    _square("forward", bfloat16, 4096, 64, Target(3.5), causal=True),
    _square("forward", bfloat16, 2048, 128, Target(3.5, share=0.65)),
    _square("forward", float32, 4096, 64, Target(1.9, share=0.65)),
    _square("forward", float32, 4096, 64, Target(1.8), causal=True),
    _square("forward", float16, 4096, 64, Target(2.5)),
    _square("backward", bfloat16, 4096, 64, Target(1.8)),
    _square("backward", bfloat16, 4096, 64, Target(1.7), causal=True),
    _square("backward", float32, 4096, 64, Target(1.8)),
    _square("backward", float16, 4096, 64, Target(14.0)),
    _decode(float32, Hkv=32),
    _decode(bfloat16, Hkv=32),
    _decode(float32, Hkv=4),
    _decode(bfloat16, Hkv=4),
    _vit("forward", Target(2.5)),
    _vit("backward", Target(1.5)),
    replace(_square("forward", bfloat16, 1024, 64, Target(2.5)), bias=True),
    _square("two threads", bfloat16, 4096, 64, Target(1.85)),
    replace(_square("call", float32, 1, 64, Target(1 / 1.5)), Hq=1, Hkv=1),
)
