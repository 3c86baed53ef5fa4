"""The package as users see it: its names, and the examples of its documentation."""

import doctest
import importlib
import pkgutil

import pytest
import torch

from attn_ops.fmha import attn_bias

MODULES = [module.name for module in pkgutil.iter_modules(attn_bias.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"attn_ops.fmha.attn_bias.{name}")
    results = doctest.testmod(module, extraglobs={"torch": torch})
    assert results.failed == 0
    if name in {"_causal", "_block_diagonal", "_padded", "_gappy", "_paged", "_block_sparse"}:
        assert results.attempted > 0


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
