"""Attention under masks and biases, against the attention that each of them stands in for."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, bfloat16, float32
from torch.nn.functional import scaled_dot_product_attention

from attn_ops import memory_efficient_attention
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
from attn_ops.fmha import attn_bias as masks
from attn_ops.fmha.attn_bias import AttentionBias

Inputs = tuple[Tensor, Tensor, Tensor]
"""Query [1, Mq, H, K]; key and value [1, Mkv, H, K]."""


def _bind(inputs: Inputs, mask: AttentionBias | None = None) -> Call:
    return partial(memory_efficient_attention, *inputs, mask)


@dataclass(frozen=True, kw_only=True)
class MaskedCase(ABC):
    """A forward of M queries and keys under a mask, by default against none."""

    M: int
    H: int = 8
    K: int = 64
    dtype: torch.dtype = bfloat16
    target: Target = NO_TARGET

    compares_threads = False

    @property
    @abstractmethod
    def kind(self) -> str:
        """Return the words that the name begins with."""

    @property
    def name(self) -> str:
        """Return what sets this case apart."""
        return f"{self.kind} {word(self.dtype)} M{self.M} H{self.H} K{self.K}"

    @property
    def baseline(self) -> str:
        """Return what ours is compared with."""
        return "ours, no mask"

    @property
    def limit(self) -> Limit:
        """Return the ceiling that bounds this case."""
        return "bfloat16" if self.dtype == bfloat16 else "float32"

    @property
    def rows(self) -> int:
        """Return how many queries and keys lie in memory."""
        return self.M

    @property
    def pairs(self) -> float:
        """Return how many keys all queries of a head see together."""
        return self.M * self.M

    @property
    def work(self) -> float:
        """Return the floating-point operations of both products, of the keys that are seen."""
        return 2 * 2 * self.H * self.pairs * self.K

    @abstractmethod
    def mask(self) -> AttentionBias:
        """Return the mask, the same each time."""

    def shrunk(self) -> "MaskedCase":
        """Return the same case without a target, small enough to try everything in seconds."""
        return replace(self, M=min(self.M, 128), target=NO_TARGET)

    def inputs(self) -> Inputs:
        """Draw query, key and value from a normal distribution."""
        generator = torch.Generator().manual_seed(0)
        shape = (1, self.rows, self.H, self.K)
        query, key, value = (torch.randn(shape, generator=generator) for _ in range(3))
        return query.to(self.dtype), key.to(self.dtype), value.to(self.dtype)

    def prepare(self) -> Contest:
        """Check ours at the small size, as eager attention needs a matrix, and bind the calls."""
        inputs = self.inputs()
        ours, baseline = self.bind_ours(inputs), self.bind_baseline(inputs)
        return Contest(Contender(ours), Contender(baseline), self.shrunk().error())

    def bind_ours(self, inputs: Inputs) -> Call:
        """Return the call that is measured."""
        return _bind(inputs, self.mask())

    def bind_baseline(self, inputs: Inputs) -> Call:
        """Return the call that it is compared with."""
        return _bind(inputs)

    def error(self) -> Error:
        """Compare ours with eager attention in float64, over a matrix of queries by keys."""
        inputs, mask = self.inputs(), self.mask()
        query, key, value = (x.transpose(1, 2) for x in inputs)
        added = mask.materialize((self.H, query.shape[2], key.shape[2]))
        exact = attend_eagerly(query.double(), key.double(), value.double(), added)
        eager = attend_eagerly(query, key, value, added)
        ours = memory_efficient_attention(*inputs, mask).transpose(1, 2)
        return compare([ours], [exact], [eager], factor=2)


@dataclass(frozen=True, kw_only=True)
class WindowCase(MaskedCase):
    """Each query sees the last keys up to its own."""

    window: int

    @property
    def kind(self) -> str:
        """Return the words that the name begins with."""
        return f"window {self.window}"

    @property
    def pairs(self) -> float:
        """Return how many keys all queries of a head see together."""
        growing = min(self.window, self.M)
        return growing * (growing + 1) / 2 + (self.M - growing) * self.window

    def mask(self) -> AttentionBias:
        """Return the mask, the same each time."""
        return masks.LowerTriangularFromBottomRightMask().make_local_attention(self.window)

    def shrunk(self) -> "WindowCase":
        """Return the same case without a target, small enough to try everything in seconds."""
        return replace(self, M=min(self.M, 128), window=min(self.window, 32), target=NO_TARGET)


@dataclass(frozen=True, kw_only=True)
class BlockSparseCase(MaskedCase):
    """Random blocks, the same for every head."""

    density: float
    """The chance of each block to be seen."""
    block_size: int = 128

    @property
    def kind(self) -> str:
        """Return the words that the name begins with."""
        return f"blocks of {self.block_size} density {self.density:g}"

    @property
    def pairs(self) -> float:
        """Return how many keys all queries of a head see together."""
        return self.mask().density * self.M * self.M

    def mask(self) -> masks.BlockSparseMask:
        """Return the mask, the same each time."""
        blocks = self.M // self.block_size
        draws = torch.rand(blocks, blocks, generator=torch.Generator().manual_seed(0))
        return masks.BlockSparseMask.from_pattern(draws < self.density, self.block_size)

    def shrunk(self) -> "BlockSparseCase":
        """Return the same case without a target, small enough to try everything in seconds."""
        return replace(self, M=min(self.M, 128), block_size=16, target=NO_TARGET)


@dataclass(frozen=True, kw_only=True)
class BiasCase(MaskedCase):
    """A bias of the distance between query and key, of every head its own."""

    bias: Literal["alibi", "relative positions"]
    radius: int = 128
    """Of relative positions: the distance up to which each has a number of its own."""
    dtype: torch.dtype = float32

    @property
    def baseline(self) -> str:
        """Return what ours is compared with."""
        return "ours, no bias"

    @property
    def kind(self) -> str:
        """Return the words that the name begins with."""
        return self.bias if self.bias == "alibi" else f"{self.bias} {self.radius}"

    def mask(self) -> AttentionBias:
        """Return the bias, the same each time."""
        if self.bias == "alibi":
            return masks.AlibiBias.for_heads(self.H)
        shape = (self.H, 2 * self.radius + 1)
        table = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        return masks.RelativePositionBias(table)


@dataclass(frozen=True, kw_only=True)
class PackedCase(MaskedCase):
    """Sequences of random lengths one after another; M is the greatest length there may be."""

    against: Literal["one by one", "padded SDPA"]
    M: int = 1024
    shortest: int = 16
    sequences: int = 64

    @property
    def baseline(self) -> str:
        """Return what ours is compared with."""
        return "ours, one by one" if self.against == "one by one" else "SDPA, padded"

    @property
    def kind(self) -> str:
        """Return the words that the name begins with."""
        return f"packed {self.sequences} against {self.against}"

    @property
    def lengths(self) -> list[int]:
        """Return the length of each sequence, the same each time."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.sequences,)
        return torch.randint(self.shortest, self.M + 1, shape, generator=generator).tolist()

    @property
    def rows(self) -> int:
        """Return how many queries and keys lie in memory."""
        return sum(self.lengths)

    @property
    def pairs(self) -> float:
        """Return how many keys all queries of a head see together."""
        return sum(length * length for length in self.lengths)

    def mask(self) -> masks.BlockDiagonalMask:
        """Return the mask, the same each time."""
        return masks.BlockDiagonalMask.from_seqlens(self.lengths)

    def shrunk(self) -> "PackedCase":
        """Return the same case without a target, small enough to try everything in seconds."""
        return replace(self, M=min(self.M, 64), sequences=min(self.sequences, 4), target=NO_TARGET)

    def bind_baseline(self, inputs: Inputs) -> Call:
        """Return the call that it is compared with."""
        parts = [x.split(self.lengths, dim=1) for x in inputs]
        if self.against == "padded SDPA":
            return self._bind_padded(*(self._padded(part) for part in parts))
        calls = [_bind((q.clone(), k.clone(), v.clone())) for q, k, v in zip(*parts, strict=True)]

        def attend_one_by_one() -> list[object]:
            return [call() for call in calls]

        return attend_one_by_one

    def _padded(self, parts: tuple[Tensor, ...]) -> Tensor:
        """Return [sequences, H, greatest length, K], as SDPA likes it best."""
        rows = torch.nn.utils.rnn.pad_sequence([part[0] for part in parts], batch_first=True)
        return rows.transpose(1, 2).contiguous()

    def _bind_padded(self, query: Tensor, key: Tensor, value: Tensor) -> Call:
        keep = torch.arange(key.shape[2]) < torch.tensor(self.lengths)[:, None]
        keep = keep[:, None, None, :]
        return partial(scaled_dot_product_attention, query, key, value, attn_mask=keep)


@dataclass(frozen=True, kw_only=True)
class PagedCase(MaskedCase):
    """One query over M keys in pages that lie in any order, against keys in their order."""

    page_size: int = 16
    M: int = 8192
    H: int = 32
    K: int = 128

    @property
    def baseline(self) -> str:
        """Return what ours is compared with."""
        return "ours, contiguous"

    @property
    def limit(self) -> Limit:
        """Return the ceiling that bounds this case."""
        return "read"

    @property
    def kind(self) -> str:
        """Return the words that the name begins with."""
        return f"decode pages of {self.page_size}"

    @property
    def work(self) -> int:
        """Return the bytes of key and value."""
        return 2 * self.M * self.H * self.K * self.dtype.itemsize

    def mask(self) -> AttentionBias:
        """Return the mask, the same each time."""
        pages = torch.randperm(self.M // self.page_size, generator=torch.Generator().manual_seed(1))
        return masks.PagedBlockDiagonalPaddedKeysMask.from_seqlens(
            [1], [self.M], pages[None].int(), self.page_size
        )

    def inputs(self) -> Inputs:
        """Draw query, key and value from a normal distribution."""
        query, key, value = super().inputs()
        return query[:, :1].contiguous(), key, value

    def bind_ours(self, inputs: Inputs) -> Call:
        """Return the call that is measured."""
        return self._bind_in_turns(inputs, self.mask())

    def bind_baseline(self, inputs: Inputs) -> Call:
        """Return the call that it is compared with."""
        return self._bind_in_turns(inputs, None)

    def _bind_in_turns(self, inputs: Inputs, mask: AttentionBias | None) -> Call:
        query, key, value = inputs
        return beyond_caches(lambda: _bind((query, key.clone(), value.clone()), mask), self.work)
