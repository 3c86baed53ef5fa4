"""`AttentionMask`: a mask as what is added to the scores, and the ways to make one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self

Anchor = Literal["top-left", "bottom-right"]
"""Where the diagonal of a causal mask is fixed: at the first query and key, or at the last."""


class AttentionMask:
    """Hold what is added to the scores: 0 keeps a key, -inf hides it.

    additive_mask: floating-point [Mq, Mkv], [B, Mq, Mkv] or [B, H, Mq, Mkv], without a gradient.
        A mask [Mq, Mkv] is held as [1, Mq, Mkv].
    is_causal: says that it is a causal mask; `values` count in any case.
    Raises: ValueError if `additive_mask` is another tensor.

    >>> AttentionMask.make_causal(2, 3).to_bool()
    tensor([[[ True, False, False],
             [ True,  True, False]]])
    """

    def __init__(self, additive_mask: Tensor, is_causal: bool = False) -> None:
        if not additive_mask.is_floating_point() or additive_mask.requires_grad:
            kind = "with a gradient" if additive_mask.requires_grad else additive_mask.dtype
            raise ValueError(
                "AttentionMask: expected a floating-point tensor without a gradient, got one "
                f"{kind}; use from_bool or from_multiplicative for other masks, and pass what is "
                "learned to att_mask itself"
            )
        if additive_mask.dim() not in (2, 3, 4):
            raise ValueError(
                "AttentionMask: expected [Mq, Mkv], [B, Mq, Mkv] or [B, H, Mq, Mkv], got "
                f"{list(additive_mask.shape)}"
            )
        self.values = additive_mask.unsqueeze(0) if additive_mask.dim() == 2 else additive_mask
        self.is_causal = is_causal

    @classmethod
    def from_bool(cls, x: Tensor) -> Self:
        """Make a float32 mask of a pattern whose True entries keep a key.

        Raises: ValueError if `x` is not bool.
        """
        if x.dtype != torch.bool:
            raise ValueError(f"AttentionMask.from_bool: expected a bool tensor, got {x.dtype}")
        return cls(torch.zeros(x.shape, device=x.device).masked_fill_(~x, -torch.inf))

    @classmethod
    def from_multiplicative(cls, x: Tensor) -> Self:
        """Make a float32 mask of a pattern of numbers, where those that are not 0 keep a key.

        Raises: ValueError if `x` is bool.
        """
        if x.dtype == torch.bool:
            raise ValueError(
                "AttentionMask.from_multiplicative: expected numbers, got a bool tensor; use "
                "from_bool"
            )
        return cls.from_bool(x != 0)

    @classmethod
    def make_causal(
        cls,
        seq_len: int,
        to_seq_len: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        anchor: Anchor = "top-left",
    ) -> Self:
        """Make a mask of `seq_len` queries that see no later key of `to_seq_len`.

        to_seq_len: default: `seq_len`.
        anchor: "top-left", query i sees keys j <= i; "bottom-right", j <= i + to_seq_len - seq_len.
        Raises: ValueError if a length is negative or `anchor` is another.
        """
        if anchor not in get_args(Anchor):
            raise ValueError(
                "AttentionMask.make_causal: expected anchor, one of "
                f"{', '.join(get_args(Anchor))}, got {anchor!r}"
            )
        keys = seq_len if to_seq_len is None else to_seq_len
        _check_lengths("make_causal", seq_len, keys)
        shift = keys - seq_len if anchor == "bottom-right" else 0
        hidden = torch.full((seq_len, keys), -torch.inf, device=device, dtype=dtype)
        return cls(hidden.triu_(1 + shift), is_causal=True)

    def make_crop(self, seq_len: int, to_seq_len: int | None = None) -> Self:
        """Return the mask of the first queries and keys, which shares this one's memory.

        Raises: ValueError if it is to be larger than this one, or a length is negative.
        """
        queries, keys = seq_len, seq_len if to_seq_len is None else to_seq_len
        _check_lengths("make_crop", queries, keys)
        if queries > self.seq_len or keys > self.to_seq_len:
            raise ValueError(
                f"AttentionMask.make_crop: expected at most {self.seq_len} queries and "
                f"{self.to_seq_len} keys, got {queries} and {keys}"
            )
        return type(self)(self.values[..., :queries, :keys], is_causal=self.is_causal)

    def to_bool(self) -> Tensor:
        """Return which keys are kept: those whose value is not -inf."""
        return self.values != -torch.inf

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Return the same mask on another device or in another floating-point dtype."""
        values = self.values.to(device=device, dtype=dtype)
        return self if values is self.values else type(self)(values, is_causal=self.is_causal)

    def __add__(self, other: AttentionMask) -> Self:
        """Return the mask that adds both to the scores."""
        if not isinstance(other, AttentionMask):
            return NotImplemented
        return type(self)(self._plus(other), is_causal=False)

    def __and__(self, other: AttentionMask | Tensor) -> Self:
        """Return the mask that keeps what both keep; `other` may be a bool tensor.

        Raises: ValueError if either holds numbers besides 0 and -inf, which would be lost.
        """
        if isinstance(other, Tensor):
            other = AttentionMask.from_bool(other)
        elif not isinstance(other, AttentionMask):
            return NotImplemented
        for mask in (self, other):
            if bool(((mask.values != 0) & mask.to_bool()).any()):
                raise ValueError(
                    "AttentionMask: expected masks of 0 and -inf alone for `&`, got other "
                    "numbers, which it would lose; use `+`"
                )
        return type(self)(self._plus(other), self.is_causal and other.is_causal)

    def _plus(self, other: AttentionMask) -> Tensor:
        """Return the sum of the values; a mask without heads holds for those of the other."""
        own, others = self.values, other.values
        if own.dim() < others.dim():
            own = own.unsqueeze(1)
        elif others.dim() < own.dim():
            others = others.unsqueeze(1)
        return own + others

    @property
    def seq_len(self) -> int:
        """Mq."""
        return self.values.shape[-2]

    @property
    def to_seq_len(self) -> int:
        """Mkv."""
        return self.values.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where the values lie."""
        return self.values.device

    @property
    def is_sparse(self) -> bool:
        """False: the values are dense; `attn_modules.patterns` makes masks of blocks."""
        return False

    @property
    def ndim(self) -> int:
        """The number of axes of the values: 3 or 4."""
        return self.values.dim()

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.values.dtype

    @property
    def shape(self) -> torch.Size:
        """Of the values."""
        return self.values.shape

    def __repr__(self) -> str:
        causal = ", causal" if self.is_causal else ""
        return f"{type(self).__name__}({list(self.shape)}, {self.dtype}{causal})"


def _check_lengths(method: str, queries: int, keys: int) -> None:
    """Raise ValueError if a length is negative."""
    if queries < 0 or keys < 0:
        raise ValueError(
            f"AttentionMask.{method}: expected seq_len and to_seq_len of 0 or more, got {queries} "
            f"and {keys}"
        )
