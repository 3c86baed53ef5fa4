"""Masks as objects, so that no tensor of size Mq x Mkv is made: the `attn_bias` argument.

Their names and meaning are those of `xformers.ops.fmha.attn_bias`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attn_ops.mask import UNBOUNDED

__all__ = [
    "AttentionBias",
    "LowerTriangularFromBottomRightLocalAttentionMask",
    "LowerTriangularFromBottomRightMask",
    "LowerTriangularMask",
]


class AttentionBias:
    """Say which keys each query sees, in a form that kernels evaluate on the fly.

    Accepted wherever `memory_efficient_attention` takes `attn_bias`. Equal objects mean equal
    masks; they hold no tensors and serve every batch, length and device.
    """

    def to(self, device: torch.device | str) -> "AttentionBias":
        """Return the same mask for tensors on `device`."""
        del device  # these masks hold no tensors
        return self

    def materialize(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return the mask as a tensor of 0 where a key is seen and -inf where not.

        For debugging and tests: kernels never call it.

        Shapes: `shape` [..., Mq, Mkv]; the result has it, expanded over the leading axes.
        Raises: ValueError if `shape` has fewer than two axes.
        """
        if len(shape) < 2:
            raise ValueError(f"materialize: expected shape [..., Mq, Mkv], got {tuple(shape)}")
        num_queries, num_keys = shape[-2:]
        query = torch.arange(num_queries, device=device).unsqueeze(1)
        key = torch.arange(num_keys, device=device).unsqueeze(0)
        seen = self._sees(query, key, num_keys - num_queries)
        mask = torch.zeros(num_queries, num_keys, dtype=dtype, device=device)
        return mask.masked_fill_(~seen, float("-inf")).expand(shape)

    def _sees(self, query: Tensor, key: Tensor, shift: int) -> Tensor:
        """Return whether query i sees key j, bool [Mq, Mkv]; `shift` is Mkv - Mq."""
        raise NotImplementedError(f"{type(self).__name__} cannot be materialized")


@dataclass(frozen=True)
class LowerTriangularMask(AttentionBias):
    """Let query i see the keys j <= i: causal, aligned at the first query and the first key.

    See `LowerTriangularFromBottomRightMask` for fewer queries than keys.
    """

    def _sees(self, query: Tensor, key: Tensor, shift: int) -> Tensor:
        del shift
        return key <= query


@dataclass(frozen=True)
class LowerTriangularFromBottomRightMask(AttentionBias):
    """Let query i see the keys j <= i + Mkv - Mq: causal, aligned at the last query and key.

    Equal to `LowerTriangularMask` if there are as many queries as keys. With more queries than
    keys the first Mq - Mkv queries see nothing, and their output is 0.
    """

    def make_local_attention(
        self, window_size: int
    ) -> "LowerTriangularFromBottomRightLocalAttentionMask":
        """Return this mask narrowed to the last `window_size` keys, the diagonal included.

        Raises: TypeError if `window_size` is no int; ValueError if it is not positive.
        """
        return LowerTriangularFromBottomRightLocalAttentionMask(window_size)

    def _sees(self, query: Tensor, key: Tensor, shift: int) -> Tensor:
        return key <= query + shift


@dataclass(frozen=True)
class LowerTriangularFromBottomRightLocalAttentionMask(LowerTriangularFromBottomRightMask):
    """Let query i see the keys i + s - w < j <= i + s, with s = Mkv - Mq and w the window.

    Each query sees exactly w keys, its own included, as far as there are so many.
    """

    _window_size: int

    def __post_init__(self) -> None:
        if not isinstance(self._window_size, int):
            raise TypeError(f"{type(self).__name__}: expected an int, got {self._window_size!r}")
        if not 1 <= self._window_size <= UNBOUNDED:
            raise ValueError(
                f"{type(self).__name__}: expected window_size in [1, 2**63), "
                f"got {self._window_size}"
            )

    def _sees(self, query: Tensor, key: Tensor, shift: int) -> Tensor:
        diagonal = query + shift
        return (key > diagonal - self._window_size) & (key <= diagonal)
