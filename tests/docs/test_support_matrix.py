"""The README's table of masks is what the operators of a build with CUDA answer."""

from pathlib import Path

from attn_ops import _native
from attn_ops._support_matrix import support_matrix

README = Path(__file__).parents[2] / "README.md"


def test_readme_holds_the_matrix_of_this_build():
    text = README.read_text()
    if not _native.has_cuda():
        text = text.replace("| emulated |", "| no |").replace("| emulated |", "| no |")
    assert f"\n{support_matrix()}\n\n" in text, (
        "replace the README's table of masks by what `python -m attn_ops.info --matrix` prints"
    )
