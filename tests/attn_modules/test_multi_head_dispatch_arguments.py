"""What a multi-head layer is made of, and the arguments of its constructor that are refused."""

import re

import pytest
import torch

from attn_modules import (
    ATTENTION_REGISTRY,
    Attention,
    CompositionalAttention,
    FourierMix,
    LocalAttention,
    MultiHeadDispatch,
    Pooling,
    ScaledDotProduct,
)

HEADS, MODEL = 2, 8


@pytest.mark.parametrize(
    ("attention", "options", "match"),
    [
        (ScaledDotProduct(), {"dim_key": 9}, "multiples of num_heads, got 9 and 8 for 2 heads"),
        (ScaledDotProduct(), {"dim_value": 7}, "multiples of num_heads"),
        (ScaledDotProduct(), {"use_rotary_embeddings": True, "dim_key": 6}, "even width"),
        (ScaledDotProduct(), {"use_separate_proj_weight": False, "kdim": 4}, "of one shape"),
        (FourierMix(), {"kdim": 4}, "one width for FourierMix"),
        (Pooling(), {"dim_value": 4}, "one width for Pooling"),
        (FourierMix(), {"in_proj_container": torch.nn.Identity()}, "no in_proj_container"),
        (Pooling(), {"out_proj": torch.nn.Identity()}, "no out_proj, because Pooling"),
        (Pooling(), {"use_rotary_embeddings": True}, "no use_rotary_embeddings"),
        (Pooling(), {"bias": False}, "no bias=False, because Pooling"),
        (Pooling(), {"bias": (True, True, True, False)}, "no bias=False, because Pooling"),
        (FourierMix(), {"use_separate_proj_weight": False}, "no use_separate_proj_weight=False"),
        (CompositionalAttention(MODEL, 4), {}, "num_heads=4, which Compositional.* got 2"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Attention) else None,
)
def test_arguments_that_do_not_fit_are_refused(attention, options, match):
    with pytest.raises(ValueError, match=match):
        MultiHeadDispatch(MODEL, HEADS, attention, **options)
    with pytest.raises(ValueError, match="multiples of num_heads"):
        MultiHeadDispatch(MODEL, 0, attention)


@pytest.mark.parametrize(
    ("attention", "advice"),
    [
        ("nystrom", "{'name': 'nystrom'}"),
        (None, "{'name': 'local'}"),
        (ScaledDotProduct, "{'name': 'local'}"),
        (torch.nn.Linear(2, 2), "{'name': 'local'}"),
    ],
)
def test_what_is_no_mechanism_is_refused(attention, advice):
    told = f"a mechanism or a configuration such as {advice}, got {attention!r}"
    with pytest.raises(TypeError, match=re.escape(told)):
        MultiHeadDispatch(MODEL, HEADS, attention=attention)


def test_configurations_are_built():
    options = {"name": "local", "window_size": 3, "causal": True}
    for given in (options, ATTENTION_REGISTRY["local"].config(**options)):
        attention = MultiHeadDispatch(MODEL, HEADS, given).attention
        assert isinstance(attention, LocalAttention)
        assert (attention.window_size, attention.causal) == (3, True)


def test_biases_are_one_or_four():
    with pytest.raises(ValueError, match="expected bias, a bool or four"):
        MultiHeadDispatch(12, 3, {"name": "local"}, bias=(True,) * 3)
    layer = MultiHeadDispatch(12, 3, {"name": "local"}, bias=None)
    assert layer.in_proj_container.q_proj.bias is not None
    assert layer.proj.bias is not None
