"""The package as users see it: its names, and the examples of its documentation."""

import doctest
import pickle

import torch

from attn_ops.fmha import attn_bias


def test_examples():
    results = doctest.testmod(attn_bias, extraglobs={**vars(attn_bias), "torch": torch})
    assert results.failed == 0
    assert results.attempted > 20


def test_classes_are_named_as_users_import_them():
    assert str(attn_bias.BlockDiagonalMask) == "<class 'attn_ops.fmha.attn_bias.BlockDiagonalMask'>"
    mask = pickle.loads(pickle.dumps(attn_bias.BlockDiagonalMask.from_seqlens([2, 3])))  # noqa: S301
    assert type(mask) is attn_bias.BlockDiagonalMask


def test_names_are_those_of_xformers():
    assert attn_bias.AttentionMask is attn_bias.AttentionBias
    assert issubclass(attn_bias.LowerTriangularMaskWithTensorBias, attn_bias.LowerTriangularMask)
    for name in attn_bias.__all__:
        assert hasattr(attn_bias, name)


def test_packed_masks_are_listed():
    for name in attn_bias.__all__:
        if "BlockDiagonal" in name:
            assert issubclass(getattr(attn_bias, name), attn_bias.VARLEN_BIASES)
    assert not issubclass(attn_bias.LowerTriangularMask, attn_bias.VARLEN_BIASES)
    assert not issubclass(attn_bias.BlockSparseMask, attn_bias.VARLEN_BIASES)
