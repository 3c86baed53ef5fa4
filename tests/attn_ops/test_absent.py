"""Names of xFormers that are not here: who looks one up is told why."""

import re
from pathlib import Path

import pytest

import attn_ops
from attn_ops import fmha

README = (Path(__file__).parents[2] / "README.md").read_text()
LISTED = README.partition("\nNot here")[2].partition("\n\n")[2].partition("\n## ")[0]
OTHERS = ("fmha.triton", "fmha.common", "fmha.attn_bias.AttentionBiasSubTensor")


@pytest.mark.parametrize("name", [*re.findall(r"`([\w.]+)`", LISTED), *OTHERS])
def test_name_of_xformers_says_why_it_is_absent(name):
    *path, name = name.split(".")
    module = attn_ops
    for part in path:
        module = getattr(module, part)
    told = f"^module '{module.__name__}' has no attribute '{name}': in xFormers that is "
    with pytest.raises(AttributeError, match=told):
        getattr(module, name)


@pytest.mark.parametrize("module", [attn_ops, fmha, fmha.attn_bias])
def test_any_other_name_is_merely_absent(module):
    assert not hasattr(module, "triton_split")
    with pytest.raises(AttributeError, match=r"has no attribute 'triton_split'$"):
        module.triton_split  # noqa: B018
