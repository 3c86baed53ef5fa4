"""Masks as objects, so that no tensor of size Mq x Mkv is made: the `attn_bias` argument.

Their names, fields and meaning are those of `xformers.ops.fmha.attn_bias`; beyond it there are
`BlockSparseMask`, `AlibiBias`, `RelativePositionBias`, and `add_bias` on every mask. s stands for
the number of keys minus that of queries, of each sequence if there are several.
"""

from typing import TYPE_CHECKING

from attn_ops import _absent
from attn_ops.fmha.attn_bias._base import AttentionBias, BiasedMask
from attn_ops.fmha.attn_bias._block_diagonal import (
    BlockDiagonalCausalFromBottomRightMask,
    BlockDiagonalCausalLocalAttentionFromBottomRightMask,
    BlockDiagonalCausalLocalAttentionMask,
    BlockDiagonalCausalMask,
    BlockDiagonalMask,
)
from attn_ops.fmha.attn_bias._block_sparse import BlockSparseMask
from attn_ops.fmha.attn_bias._causal import (
    LocalAttentionFromBottomRightMask,
    LowerTriangularFromBottomRightLocalAttentionMask,
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
    LowerTriangularMaskWithTensorBias,
)
from attn_ops.fmha.attn_bias._gappy import (
    BlockDiagonalCausalWithOffsetGappyKeysMask,
    BlockDiagonalGappyKeysMask,
    BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask,
)
from attn_ops.fmha.attn_bias._padded import (
    BlockDiagonalCausalLocalAttentionPaddedKeysMask,
    BlockDiagonalCausalWithOffsetPaddedKeysMask,
    BlockDiagonalLocalAttentionPaddedKeysMask,
    BlockDiagonalPaddedKeysMask,
)
from attn_ops.fmha.attn_bias._paged import (
    PagedBlockDiagonalCausalLocalPaddedKeysMask,
    PagedBlockDiagonalCausalWithOffsetGappyKeysMask,
    PagedBlockDiagonalCausalWithOffsetPaddedKeysMask,
    PagedBlockDiagonalGappyKeysMask,
    PagedBlockDiagonalPaddedKeysMask,
)
from attn_ops.fmha.attn_bias._relative import AlibiBias, RelativePositionBias
from attn_ops.fmha.attn_bias._sequence_lengths import _SeqLenInfo
from attn_ops.fmha.attn_bias._spaced_lengths import _GappySeqInfo, _PaddedSeqLenInfo

__all__ = [
    "VARLEN_BIASES",
    "AlibiBias",
    "AttentionBias",
    "AttentionMask",
    "BiasedMask",
    "BlockDiagonalCausalFromBottomRightMask",
    "BlockDiagonalCausalLocalAttentionFromBottomRightMask",
    "BlockDiagonalCausalLocalAttentionMask",
    "BlockDiagonalCausalLocalAttentionPaddedKeysMask",
    "BlockDiagonalCausalMask",
    "BlockDiagonalCausalWithOffsetGappyKeysMask",
    "BlockDiagonalCausalWithOffsetPaddedKeysMask",
    "BlockDiagonalGappyKeysMask",
    "BlockDiagonalLocalAttentionFromBottomRightGappyKeysMask",
    "BlockDiagonalLocalAttentionPaddedKeysMask",
    "BlockDiagonalMask",
    "BlockDiagonalPaddedKeysMask",
    "BlockSparseMask",
    "LocalAttentionFromBottomRightMask",
    "LowerTriangularFromBottomRightLocalAttentionMask",
    "LowerTriangularFromBottomRightMask",
    "LowerTriangularMask",
    "LowerTriangularMaskWithTensorBias",
    "PagedBlockDiagonalCausalLocalPaddedKeysMask",
    "PagedBlockDiagonalCausalWithOffsetGappyKeysMask",
    "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask",
    "PagedBlockDiagonalGappyKeysMask",
    "PagedBlockDiagonalPaddedKeysMask",
    "RelativePositionBias",
    "_GappySeqInfo",
    "_PaddedSeqLenInfo",
    "_SeqLenInfo",
]

for _name in __all__:  # errors and pickles name a class where users import it
    if isinstance(globals().get(_name), type):
        globals()[_name].__module__ = __name__

AttentionMask = AttentionBias
"""xFormers' former name of the base class."""

VARLEN_BIASES = (
    BlockDiagonalMask,
    BlockDiagonalGappyKeysMask,
    BlockDiagonalPaddedKeysMask,
    PagedBlockDiagonalPaddedKeysMask,
    PagedBlockDiagonalGappyKeysMask,
)
"""The classes of packed sequences: query, key and value have batch 1."""

if not TYPE_CHECKING:  # type checkers know that there is no such attribute

    def __getattr__(name: str) -> object:
        raise _absent.no_attribute(__name__, name)
