"""The README's table of masks is what the operators of this build answer."""

from pathlib import Path

from attn_ops._support_matrix import support_matrix

README = Path(__file__).parents[2] / "README.md"


def test_readme_holds_the_matrix_of_this_build():
    assert f"\n{support_matrix()}\n\n" in README.read_text(), (
        "replace the README's table of masks by what `python -m attn_ops.info --matrix` prints"
    )
