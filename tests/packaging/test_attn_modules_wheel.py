"""The distribution attn-modules: what its wheel holds and requires, and that pip installs it."""

import email
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from linked_environment import create_linked_environment
from wheels import REPOSITORY, run

pytestmark = pytest.mark.slow

FOLDER = REPOSITORY / "packages" / "attn-modules"

TRAIN_A_MECHANISM = """
import attn_modules, attn_ops, torch
x = torch.randn(2, 4, 16, 8, requires_grad=True)
attention = attn_modules.build_attention({"name": "scaled_dot_product", "causal": True})
attention(x, x, x).sum().backward()
print(attn_modules.__file__, attn_ops.__file__, x.grad.isfinite().all().item())
"""


@pytest.fixture(scope="module")
def modules_wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules_wheel")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(FOLDER)]
    run(build, cwd=REPOSITORY)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_package_and_nothing_else(modules_wheel):
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=FOLDER / "src",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    package = {path for path in listed if (FOLDER / "src" / path).is_file()}
    information = "attn_modules-0.1.0.dist-info"
    described = {f"{information}/{name}" for name in ("METADATA", "RECORD", "WHEEL")}
    with zipfile.ZipFile(modules_wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    assert set(names) == package | described | {f"{information}/licenses/LICENSE"}
    assert {"attn_modules/py.typed", "attn_modules/__init__.pyi"} <= package


def test_wheel_requires_attn_ops_and_no_sibling(modules_wheel):
    assert modules_wheel.name == "attn_modules-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(modules_wheel) as archive:
        described = email.message_from_bytes(archive.read("attn_modules-0.1.0.dist-info/METADATA"))
    requirements = [Requirement(text) for text in described.get_all("Requires-Dist")]
    needed = {str(r) for r in requirements if r.marker is None}
    assert needed == {"attn-ops[torch]==0.1.0", "lazy-loader>=0.4"}
    assert described["License-Expression"] == "BSD-3-Clause"
    assert described["Requires-Python"] == ">=3.10"


def test_pip_installs_the_folder_with_attn_ops_and_nothing_else(wheel, tmp_path):
    """`pip install packages/attn-modules`, in an environment that has torch and no index."""
    python = create_linked_environment(
        tmp_path / "env", ["torch", "numpy", "lazy-loader", "hatchling"]
    )
    offline = ["--no-index", "--find-links", str(wheel.parent), "--no-build-isolation"]
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    before = set(run([*pip, "freeze", "--all"], cwd=tmp_path).splitlines())
    run([*pip, "install", *offline, str(FOLDER)], cwd=tmp_path)
    added = set(run([*pip, "freeze", "--all"], cwd=tmp_path).splitlines()) - before
    assert {line.partition(" ")[0].partition("==")[0] for line in added} == {
        "attn-modules",
        "attn-ops",
    }
    *files, learned = run([str(python), "-c", TRAIN_A_MECHANISM], cwd=tmp_path).split()
    assert all(Path(file).is_relative_to(tmp_path / "env") for file in files)
    assert learned == "True"
