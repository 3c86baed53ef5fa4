"""What is timed: the shapes, and how fast each should at least be on one thread."""

from dataclasses import replace

from torch import bfloat16, dtype, float16, float32

from attn_ops.benchmark.case import Case, Target
from attn_ops.benchmark.dense import DenseCase, Kind
from attn_ops.benchmark.masked import BiasCase, BlockSparseCase, PackedCase, PagedCase, WindowCase
from attn_ops.benchmark.merging import MergeCase


def _square(
    kind: Kind, of: dtype, M: int, K: int, target: Target, *, causal: bool = False
) -> DenseCase:
    return DenseCase(kind, of, Mq=M, Mkv=M, K=K, causal=causal, target=target)


def _vit(kind: Kind, target: Target) -> DenseCase:
    return DenseCase(kind, bfloat16, B=8, Mq=197, Mkv=197, K=64, Hq=12, Hkv=12, target=target)


def _decode(of: dtype, Hkv: int) -> DenseCase:
    return DenseCase("decode", of, Mq=1, Mkv=8192, K=128, Hq=32, Hkv=Hkv, target=Target(share=0.8))


def _block_sparse(density: float) -> BlockSparseCase:
    """Aim at the listed part of the time of full attention, 25 % more and 2 % of the whole."""
    case = BlockSparseCase(density=density, M=4096)
    return replace(case, target=Target(1 / (1.25 * case.mask().density + 0.02)))


CASES: tuple[Case, ...] = (
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
    PackedCase(against="one by one", target=Target(0.85)),
    PackedCase(against="padded SDPA", target=Target(4.0)),
    WindowCase(window=256, M=16384, H=1, target=Target(25.0)),
    PagedCase(target=Target(0.8)),
    MergeCase(float32, target=Target(share=0.7)),
    MergeCase(bfloat16, target=Target(share=0.7)),
    _block_sparse(0.1),
    _block_sparse(0.25),
    BiasCase(bias="alibi", M=4096, target=Target(1 / 1.15)),
    BiasCase(bias="relative positions", M=4096, target=Target(1 / 1.15)),
)
