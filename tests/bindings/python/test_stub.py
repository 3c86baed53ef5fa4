"""The checked-in type stub is what the module says of itself."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
STUB = REPOSITORY / "packages" / "attn-ops" / "src" / "attn_ops" / "_native.pyi"


def test_stub_is_up_to_date(tmp_path):
    command = f"""
import sys
sys.modules["torch"] = None
sys.argv = ["stubgen", "-q", "-m", "attn_ops._native",
            "-p", {str(REPOSITORY / "bindings/python/stub_patterns.txt")!r},
            "-o", {str(tmp_path / "_native.pyi")!r}]
from nanobind.stubgen import main
main()
"""
    subprocess.run([sys.executable, "-c", command], check=True)
    assert (tmp_path / "_native.pyi").read_text() == STUB.read_text(), (
        "rewrite _native.pyi as bindings/README.md says"
    )
