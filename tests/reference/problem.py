"""One attention call, forward and backward, and its results: what reference and library share."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees, with what weight: the parts of `attn/mask.h` that kernels have."""

    left: int | None = None
    """Keys before the diagonal; None: all."""
    right: int | None = None
    """Keys after the diagonal; None: all."""
    anchor: Literal["top_left", "bottom_right"] = "top_left"
    bias: Tensor | None = None
    """Broadcastable to [B, Hq, Mq, Mkv]; added to the scaled scores, or bool: True keeps a key."""
    dropout_p: float = 0.0
    dropout_seed: int = 0
    dropout_offset: int = 0

    def seen(self, num_queries: int, num_keys: int) -> Tensor:
        """Return whether query i sees key j: bool, broadcastable to [B, Hq, Mq, Mkv]."""
        query = torch.arange(num_queries).unsqueeze(1)
        key = torch.arange(num_keys).unsqueeze(0)
        shift = num_keys - num_queries if self.anchor == "bottom_right" else 0
        after_diagonal = key - (query + shift)
        seen = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool)
        if self.left is not None:
            seen = seen & (after_diagonal >= -self.left)
        if self.right is not None:
            seen = seen & (after_diagonal <= self.right)
        if self.bias is not None:
            keeps = self.bias if self.bias.dtype == torch.bool else self.bias != -torch.inf
            seen = seen & keeps
        return seen

    @property
    def additive_bias(self) -> Tensor | None:
        """The bias where it is one that is added, else None."""
        return None if self.bias is None or self.bias.dtype == torch.bool else self.bias


@dataclass(frozen=True)
class Problem:
    """The inputs of a forward and of its backward."""

    query: Tensor
    """[B, Mq, Hq, K]"""
    key: Tensor
    """[B, Mkv, Hkv, K]"""
    value: Tensor
    """[B, Mkv, Hkv, Kv]"""
    mask: Mask
    scale: float
    grad_out: Tensor
    """[B, Mq, Hq, Kv]"""
    grad_lse: Tensor
    """[B, Hq, Mq]"""

    @property
    def groups(self) -> int:
        """Query heads that share a key head."""
        return self.query.shape[2] // self.key.shape[2]


@dataclass(frozen=True)
class Results:
    """What a forward and its backward give, in the shapes of `Problem`."""

    out: Tensor
    lse: Tensor
    """[B, Hq, Mq]"""
    grad_query: Tensor
    grad_key: Tensor
    grad_value: Tensor
    grad_bias: Tensor | None
    """In the bias' own shape; None without an additive bias."""
