"""What `python -m attn_ops` says of files that an installation lacks; others: tests/packaging."""

import sys

import pytest

from attn_ops import __main__


def test_a_library_that_was_not_built_is_no_path(monkeypatch, capsys, tmp_path):
    missing = tmp_path / "libattn_torch.so"
    monkeypatch.setitem(__main__.QUERIES, "torch-library", (lambda: missing, "file"))
    monkeypatch.setattr(sys, "argv", ["attn_ops", "--torch-library"])
    with pytest.raises(SystemExit, match="1"):
        __main__.main()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"expected {missing}" in printed.err
    assert "install attn-ops again with its extra torch" in printed.err
