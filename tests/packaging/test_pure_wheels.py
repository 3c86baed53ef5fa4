"""The distributions without native code: what their wheels hold, require, and that pip installs."""

import email
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from linked_environment import create_linked_environment
from wheels import REPOSITORY, run

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Distribution:
    """A folder of packages/, and a program whose last printed word is True if it works."""

    name: str
    program: str

    @property
    def package(self):
        return self.name.replace("-", "_")

    @property
    def folder(self):
        return REPOSITORY / "packages" / self.name


TRAIN_A_MECHANISM = """
x = torch.randn(2, 4, 16, 8, requires_grad=True)
attention = attn_modules.build_attention({"name": "scaled_dot_product", "causal": True})
attention(x, x, x).sum().backward()
print(x.grad.isfinite().all().item())
"""

STEP_A_LAYER = """
layer = attn_continual.SingleOutputMultiheadAttention(8, 2, sequence_len=2)
first, second = (layer.forward_step(torch.randn(1, 8)) for _ in range(2))
print(first is None and second.isfinite().all().item())
"""

DISTRIBUTIONS = [
    pytest.param(Distribution(name, program), id=name)
    for name, program in (("attn-modules", TRAIN_A_MECHANISM), ("attn-continual", STEP_A_LAYER))
]


@pytest.fixture(scope="module", params=DISTRIBUTIONS)
def distribution(request):
    return request.param


@pytest.fixture(scope="module")
def built(distribution, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pure_wheel")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    run([*build, str(distribution.folder)], cwd=REPOSITORY)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_wheel_holds_the_package_and_nothing_else(distribution, built):
    source = distribution.folder / "src"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    package = {path for path in listed if (source / path).is_file()}
    information = f"{distribution.package}-0.1.0.dist-info"
    described = {f"{information}/{name}" for name in ("METADATA", "RECORD", "WHEEL")}
    with zipfile.ZipFile(built) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    assert set(names) == package | described | {f"{information}/licenses/LICENSE"}
    assert {f"{distribution.package}/py.typed", f"{distribution.package}/__init__.pyi"} <= package


def test_wheel_requires_attn_ops_and_no_sibling(distribution, built):
    assert built.name == f"{distribution.package}-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(built) as archive:
        metadata = archive.read(f"{distribution.package}-0.1.0.dist-info/METADATA")
    described = email.message_from_bytes(metadata)
    requirements = [Requirement(text) for text in described.get_all("Requires-Dist")]
    needed = {str(r) for r in requirements if r.marker is None}
    assert needed == {"attn-ops[torch]==0.1.0", "lazy-loader>=0.4"}
    assert described["License-Expression"] == "BSD-3-Clause"
    assert described["Requires-Python"] == ">=3.10"


def test_pip_installs_the_folder_with_attn_ops_and_nothing_else(distribution, wheel, tmp_path):
    """`pip install packages/…`, in an environment that has torch and no index."""
    linked = ["torch", "numpy", "lazy-loader", "hatchling"]
    python = create_linked_environment(tmp_path / "env", linked)
    offline = ["--no-index", "--find-links", str(wheel.parent), "--no-build-isolation"]
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    before = set(run([*pip, "freeze", "--all"], cwd=tmp_path).splitlines())
    run([*pip, "install", *offline, str(distribution.folder)], cwd=tmp_path)
    added = set(run([*pip, "freeze", "--all"], cwd=tmp_path).splitlines()) - before
    added_names = {line.partition(" ")[0].partition("==")[0] for line in added}
    assert added_names == {distribution.name, "attn-ops"}
    package = distribution.package
    program = (
        f"import attn_ops, {package}, torch\n"
        f"print({package}.__file__, attn_ops.__file__)\n{distribution.program}"
    )
    *files, works = run([str(python), "-c", program], cwd=tmp_path).split()
    assert all(Path(file).is_relative_to(tmp_path / "env") for file in files)
    assert works == "True"
