"""Sequences of different lengths, one after another in tensors of batch 1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from attn_ops.fmha.attn_bias import _bands
from attn_ops.fmha.attn_bias._packed import PackedMask
from attn_ops.fmha.attn_bias._sequence_lengths import _SeqLenInfo
from attn_ops.mask import Band, MaskSpec, Sequences

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

    from attn_ops.fmha.attn_bias._integers import Lengths


@dataclass(eq=False)
class BlockDiagonalMask(PackedMask[_SeqLenInfo]):
    """Let the queries of each sequence see all keys of their own sequence.

    Shapes: query [1, sum of the query lengths, H, K]; key and value likewise.

    >>> from attn_ops import memory_efficient_attention
    >>> parts = [torch.randn(1, length, 1, 16) for length in (3, 6, 2)]
    >>> attn_bias, x = BlockDiagonalMask.from_tensor_list(parts)
    >>> linear = torch.nn.Linear(16, 16 * 3)
    >>> q, k, v = linear(x).reshape(1, -1, 1, 3, 16).unbind(-2)
    >>> out = memory_efficient_attention(q, k, v, attn_bias=attn_bias)
    >>> [tuple(part.shape) for part in attn_bias.split(out)]
    [(1, 3, 1, 16), (1, 6, 1, 16), (1, 2, 1, 16)]
    """

    _batch_sizes: Sequence[int] | None = None
    """How many sequences, equally long, each tensor holds that `split` returns; None: one."""

    @classmethod
    def from_seqlens(
        cls,
        q_seqlen: Lengths,
        kv_seqlen: Lengths | None = None,
        *,
        device: torch.device | str | None = None,
        max_q_seqlen: int | None = None,
        max_kv_seqlen: int | None = None,
    ) -> Self:
        """Make a mask for sequences of these lengths.

        q_seqlen, kv_seqlen: Python ints, or an int32 or int64 tensor [n], never read on another
            device than the CPU; the keys' default is the queries'. Ints must add up to the rows of
            query and key; tensors, and lengths changed in place, may leave rows over, which give 0.
        device: where query and key are; default: that of the tensors, or of this build's kernels.
        max_q_seqlen, max_kv_seqlen: what lengths changed in place may grow to; default: the
            greatest, unknown for tensors on another device (kernels then need more scratch).
        Raises: AssertionError if there are not as many key lengths as query lengths; ValueError
            if a length is negative or above its maximum; TypeError if the class has a window.
        """
        cls._check_needs_no_window()
        q_seqinfo = _SeqLenInfo.from_seqlens(q_seqlen, device=device, max_seqlen=max_q_seqlen)
        if kv_seqlen is None or _are_same(q_seqlen, kv_seqlen):
            return cls(q_seqinfo=q_seqinfo, k_seqinfo=q_seqinfo)
        k_seqinfo = _SeqLenInfo.from_seqlens(kv_seqlen, device=device, max_seqlen=max_kv_seqlen)
        return cls(q_seqinfo=q_seqinfo, k_seqinfo=k_seqinfo)

    @classmethod
    def from_tensor_list(cls, tensors: Sequence[Tensor]) -> tuple[Self, Tensor]:
        """Join [B_i, M_i, *] into [1, sum of B_i * M_i, *]; `split` undoes it.

        tensors: B_i sequences of M_i rows each; what follows, such as [H, K], is the same for all.
            So a tensor [M, H, K] counts as M sequences of H rows: give a sequence as [1, M, H, K].
        Returns: the mask, which lets each of the B_i see itself alone, and the joined tensor.
        Raises: ValueError if there are no tensors, one has fewer than two axes, or other extents
            than the first beyond these.
        """
        _check_parts(cls, "tensors", tensors)
        lengths = [x.shape[1] for x in tensors for _ in range(x.shape[0])]
        mask = cls.from_seqlens(lengths, device=tensors[0].device)
        return replace(mask, _batch_sizes=[x.shape[0] for x in tensors]), _join(tensors)

    @classmethod
    def from_tensor_lists_qkv(
        cls,
        tensors_q: Sequence[Tensor],
        tensors_k: Sequence[Tensor],
        tensors_v: Sequence[Tensor] | None = None,
    ) -> tuple[Self, Tensor, Tensor, Tensor | None]:
        """Join queries, keys and values [B_i, M_i, *] as `from_tensor_list` does.

        Returns: the mask, and the joined queries, keys, and values or None.
        Raises: AssertionError if the lists, their batch sizes or the lengths of keys and values
            differ; ValueError if there are no tensors, or those of a list cannot be joined.
        """
        values = tensors_k if tensors_v is None else tensors_v
        if not len(tensors_q) == len(tensors_k) == len(values):
            raise AssertionError(
                f"{cls.__name__}: expected as many keys and values as queries, got "
                f"{len(tensors_q)} queries, {len(tensors_k)} keys, {len(values)} values"
            )
        for name, tensors in (("queries", tensors_q), ("keys", tensors_k), ("values", values)):
            _check_parts(cls, name, tensors)
        for i, (q, k, v) in enumerate(zip(tensors_q, tensors_k, values, strict=True)):
            if q.shape[0] != k.shape[0] or k.shape[:2] != v.shape[:2]:
                raise AssertionError(
                    f"{cls.__name__}: expected query [B, Mq, *], key and value [B, Mkv, *], got "
                    f"{list(q.shape)}, {list(k.shape)}, {list(v.shape)} at {i}"
                )
        mask = cls.from_seqlens(
            [q.shape[1] for q in tensors_q for _ in range(q.shape[0])],
            [k.shape[1] for k in tensors_k for _ in range(k.shape[0])],
            device=tensors_q[0].device,
        )
        mask = replace(mask, _batch_sizes=[q.shape[0] for q in tensors_q])
        joined = None if tensors_v is None else _join(tensors_v)
        return mask, _join(tensors_q), _join(tensors_k), joined

    def split_queries(self, tensor: Tensor) -> list[Tensor]:
        """Cut [1, sum of query lengths, *] into the tensors [B_i, M_i, *] it was joined from.

        Raises: ValueError if `tensor` has another shape.
        """
        return self.q_seqinfo.split(tensor, self._batch_sizes)

    def split_kv(self, tensor: Tensor) -> list[Tensor]:
        """Cut [1, sum of key lengths, *] into the tensors [B_i, M_i, *] it was joined from.

        Raises: ValueError if `tensor` has another shape.
        """
        return self.k_seqinfo.split(tensor, self._batch_sizes)

    def split(self, tensor: Tensor) -> list[Tensor]:
        """Undo `from_tensor_list`, for queries and keys of equal lengths.

        Raises: AssertionError if keys have lengths of their own (see `split_queries`); ValueError
            if `tensor` has another shape than [1, sum of lengths, *].
        """
        if self.q_seqinfo is not self.k_seqinfo:
            raise AssertionError(
                f"{type(self).__name__}.split: expected queries and keys to share their lengths, "
                "got two; use split_queries or split_kv"
            )
        return self.q_seqinfo.split(tensor, self._batch_sizes)

    def make_causal(self) -> BlockDiagonalCausalMask:
        """Return this mask, causal in each sequence from its first query and key."""
        return BlockDiagonalCausalMask(self.q_seqinfo, self.k_seqinfo, self._batch_sizes)

    def make_causal_from_bottomright(self) -> BlockDiagonalCausalFromBottomRightMask:
        """Return this mask, causal in each sequence up to its last query and key.

        Raises: ValueError if a sequence has fewer keys than queries.
        """
        return BlockDiagonalCausalFromBottomRightMask(
            self.q_seqinfo, self.k_seqinfo, self._batch_sizes
        )

    def make_local_attention(self, window_size: int) -> BlockDiagonalCausalLocalAttentionMask:
        """Return this mask, causal from the first query and key, of `window_size` keys at most.

        Raises: ValueError, RuntimeError as `BlockDiagonalCausalLocalAttentionMask`.
        """
        return BlockDiagonalCausalLocalAttentionMask(
            self.q_seqinfo, self.k_seqinfo, self._batch_sizes, window_size
        )

    def make_local_attention_from_bottomright(
        self, window_size: int
    ) -> BlockDiagonalCausalLocalAttentionFromBottomRightMask:
        """Return this mask, causal up to the last query and key, of `window_size` keys at most.

        Raises: ValueError if a sequence has fewer keys than queries, or a window of less than 1.
        """
        return BlockDiagonalCausalLocalAttentionFromBottomRightMask(
            self.q_seqinfo, self.k_seqinfo, self._batch_sizes, window_size
        )

    def mask_spec(self) -> MaskSpec:
        """Return the parts that kernels evaluate."""
        queries, keys = self.q_seqinfo, self.k_seqinfo
        sequences = Sequences(
            queries.seqstart, keys.seqstart, None, queries.capacity, keys.capacity
        )
        return MaskSpec(self._band(), sequences=sequences)

    def materialized_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Check the shape that `materialize` is asked for, and return it.

        Raises: AssertionError if it does not end in the sums of the lengths of queries and keys.
        """
        if tuple(shape[-2:]) != self.natural_shape():
            raise AssertionError(
                f"materialize: expected [..., Mq, Mkv] with {self.natural_shape()}, got {shape}"
            )
        return shape


@dataclass(eq=False)
class BlockDiagonalCausalMask(BlockDiagonalMask):
    """Let query i of each sequence see its keys j <= i."""

    def _band(self) -> Band:
        return _bands.CAUSAL


@dataclass(eq=False)
class BlockDiagonalCausalFromBottomRightMask(BlockDiagonalMask):
    """Let query i of each sequence see its keys j <= i + s, with s keys more than queries.

    Raises: ValueError if a sequence has fewer keys than queries.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.q_seqinfo.are_known and self.k_seqinfo.are_known):
            return
        lengths = zip(self.q_seqinfo.lengths(), self.k_seqinfo.lengths(), strict=True)
        for i, (num_queries, num_keys) in enumerate(lengths):
            if num_keys < num_queries:
                raise ValueError(
                    f"{type(self).__name__}: Block #{i} has num_keys={num_keys} and "
                    f"num_queries={num_queries}. Expected `num_keys >= num_queries`"
                )

    def _band(self) -> Band:
        return _bands.CAUSAL_FROM_BOTTOM_RIGHT


@dataclass(eq=False)
class BlockDiagonalCausalLocalAttentionMask(BlockDiagonalCausalMask):
    """Let query i of each sequence see its keys i - window_size < j <= i.

    Raises: ValueError if `_window_size` is not positive; RuntimeError if a sequence has a query
    that lies beyond all windows: as many queries as keys and window together, or more.
    """

    _made_by: ClassVar[str] = (
        "BlockDiagonalMask.from_seqlens(...).make_local_attention(window_size)"
    )

    _window_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _bands.check_window(self, self._window_size)
        if not (self.q_seqinfo.are_known and self.k_seqinfo.are_known):
            return
        lengths = zip(self.q_seqinfo.lengths(), self.k_seqinfo.lengths(), strict=True)
        for num_queries, num_keys in lengths:
            if num_queries - self._window_size >= num_keys:
                raise RuntimeError(
                    f"No keys are attended in q_seqlen {num_queries} k_seqlen {num_keys} with "
                    f"sliding window {self._window_size}; the last queries see none from the first "
                    "key on: widen the window, or call make_local_attention_from_bottomright"
                )

    def _band(self) -> Band:
        return _bands.causal_window(self._window_size)


@dataclass(eq=False)
class BlockDiagonalCausalLocalAttentionFromBottomRightMask(BlockDiagonalCausalFromBottomRightMask):
    """Let query i of each sequence see its keys i + s - window_size < j <= i + s.

    Raises: ValueError if `_window_size` is not positive, or a sequence has fewer keys than queries.
    """

    _made_by: ClassVar[str] = (
        "BlockDiagonalMask.from_seqlens(...).make_local_attention_from_bottomright(window_size)"
    )

    _window_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _bands.check_window(self, self._window_size)

    def _band(self) -> Band:
        return _bands.causal_window_from_bottom_right(self._window_size)


def _are_same(q_seqlen: Lengths, kv_seqlen: Lengths) -> bool:
    if isinstance(q_seqlen, Tensor) or isinstance(kv_seqlen, Tensor):
        return q_seqlen is kv_seqlen
    return list(q_seqlen) == list(kv_seqlen)


def _check_parts(mask_type: type, name: str, tensors: Sequence[Tensor]) -> None:
    if not tensors:
        raise ValueError(f"{mask_type.__name__}: expected one tensor or more to join, got none")
    for i, tensor in enumerate(tensors):
        if tensor.dim() < 2:
            raise ValueError(
                f"{mask_type.__name__}: expected {name} [B, M, *] to join, got "
                f"{list(tensor.shape)} at {i}"
            )
        if tensor.shape[2:] != tensors[0].shape[2:]:
            layout = ", ".join(("B", "M", *map(str, tensors[0].shape[2:])))
            raise ValueError(
                f"{mask_type.__name__}: expected {name} [{layout}] to join, as the first is, got "
                f"{list(tensor.shape)} at {i}"
            )


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.reshape(1, x.shape[0] * x.shape[1], *x.shape[2:]) for x in tensors], dim=1)
