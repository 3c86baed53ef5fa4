"""What all masks of sequences share: queries one after another, keys wherever their lengths say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Generic, NoReturn, TypeVar

import torch

from attn_ops.fmha.attn_bias import _bands
from attn_ops.fmha.attn_bias._base import AttentionBias
from attn_ops.fmha.attn_bias._integers import check_size
from attn_ops.fmha.attn_bias._sequence_lengths import _SeqLenInfo
from attn_ops.mask import Band, Sequences

if TYPE_CHECKING:
    from typing_extensions import Self

    from attn_ops.fmha.attn_bias._spaced_lengths import _SpacedSeqLenInfo

KeyInfo = TypeVar("KeyInfo", bound=_SeqLenInfo)


@dataclass(eq=False)
class PackedMask(AttentionBias, Generic[KeyInfo]):
    """A mask that lets the queries of each sequence see keys of their own sequence alone.

    Raises: AssertionError if queries and keys are divided into different numbers of sequences.
    """

    _made_by: ClassVar[str] = ""
    """What makes it from lengths and a window, if it has one; `from_seqlens` then refuses."""

    q_seqinfo: _SeqLenInfo
    """Where each sequence's queries are."""
    k_seqinfo: KeyInfo
    """Where each sequence's keys are."""

    def __post_init__(self) -> None:
        if self.q_seqinfo.count != self.k_seqinfo.count:
            raise AssertionError(
                f"{type(self).__name__}: expected as many sequences of keys as of queries, got "
                f"{self.k_seqinfo.count} and {self.q_seqinfo.count}"
            )

    @classmethod
    def _check_needs_no_window(cls) -> None:
        if cls._made_by:
            raise TypeError(
                f"{cls.__name__}.from_seqlens: expected a window besides the lengths, got none; "
                f"call {cls._made_by}"
            )

    def to(self, device: torch.device | str) -> Self:
        """Return the same mask, of the same class, on `device`."""
        q_seqinfo = self.q_seqinfo.to(device)
        shared = self.k_seqinfo is self.q_seqinfo  # `split` asks
        k_seqinfo = q_seqinfo if shared else self.k_seqinfo.to(device)
        return replace(self, q_seqinfo=q_seqinfo, k_seqinfo=k_seqinfo)

    def check_fits(self, num_queries: int, num_keys: int) -> None:
        """Check that the lengths, as far as Python gave them, add up to these rows.

        Raises: ValueError if they do not.
        """
        if torch.compiler.is_compiling():
            return  # each length would be a guard of its own
        for name, got, info in (
            ("query", num_queries, self.q_seqinfo),
            ("key", num_keys, self.k_seqinfo),
        ):
            expected = info.fixed_size
            if expected is not None and got != expected:
                self._refuse_rows(name, got, expected, info)

    def _refuse_rows(self, name: str, got: int, expected: int, info: _SeqLenInfo) -> NoReturn:
        raise ValueError(
            f"memory_efficient_attention: expected {name} with {expected} rows, for the sequences "
            f"of this {type(self).__name__} at {info.seqstart_py} of lengths {info.lengths()}, got "
            f"{got}; cut {name} to them, or make the mask from tensors, which may leave rows over"
        )

    def _band(self) -> Band:
        """Return the band that applies within each sequence."""
        return _bands.EVERY_KEY

    def materialized_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Check the shape that `materialize` is asked for, and return it."""
        super().materialized_shape(shape)
        num_queries, num_keys = self.natural_shape()
        for letter, got, expected in (("q", shape[-2], num_queries), ("k", shape[-1], num_keys)):
            if got != expected:
                raise ValueError(
                    f"materialize: {letter} shapes wrong: expected [..., {num_queries}, "
                    f"{num_keys}], got {shape}"
                )
        return shape

    def natural_shape(self) -> tuple[int, int]:
        """Return the Mq and Mkv it is made for."""
        return self.q_seqinfo.seqstart_py[-1], self.k_seqinfo.seqstart_py[-1]


def spaced_sequences(queries: _SeqLenInfo, keys: _SpacedSeqLenInfo) -> Sequences:
    """Return what kernels read of packed queries over keys with room between them."""
    return Sequences(queries.seqstart, keys.seqstart, keys.seqlen, queries.capacity, keys.capacity)


def check_pages(who: str, block_tables: object, page_size: int) -> None:
    """Check what describes pages, the arguments of `who`.

    Raises: TypeError if `block_tables` is no tensor or `page_size` no int; ValueError if that is
    less than 1.
    """
    if not isinstance(block_tables, torch.Tensor):
        raise TypeError(
            f"{who}: expected block_tables, an int32 tensor [n, pages], got {type(block_tables)}; "
            "pass torch.tensor(block_tables, dtype=torch.int32)"
        )
    check_size(who, "page_size", page_size)


def check_paged_type(mask: AttentionBias, paged_type: type, expected: str) -> None:
    """Check the class that `make_paged` is asked for; `expected` has the band of `mask`.

    Raises: ValueError if it is another.
    """
    if paged_type.__name__ != expected:
        raise ValueError(
            f"{type(mask).__name__}.make_paged: expected paged_type {expected}, got "
            f"{paged_type.__name__}, with which queries would see other keys"
        )
