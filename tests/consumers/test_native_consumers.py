"""C and C++ programs find the installed wheel's library, link it without torch, and run."""

import shutil
from pathlib import Path

import pytest

from wheels import run

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("language", ["c", "cpp"])]
SOURCE = Path(__file__).parent


def needed_libraries(program, folder):
    dynamic = run(["readelf", "--dynamic", str(program)], cwd=folder)
    return [line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line]


def check_program(program, folder):
    assert run([str(program)], cwd=folder).startswith("attn ")
    needed = needed_libraries(program, folder)
    assert "libattn.so.0" in needed
    assert not [name for name in needed if "torch" in name or "python" in name]


def test_find_package(installed_wheel, language, tmp_path):
    package = installed_wheel.run("-m", "attn_ops", "--cmake-dir").strip()
    configure = ["cmake", "-G", "Ninja", "-S", str(SOURCE / language), "-B", str(tmp_path)]
    run([*configure, f"-Dattn_DIR={package}"], cwd=tmp_path)
    run(["cmake", "--build", str(tmp_path)], cwd=tmp_path)
    check_program(tmp_path / "attend", tmp_path)


@pytest.mark.skipif(not shutil.which("pkg-config"), reason="pkg-config is not installed")
def test_pkg_config(installed_wheel, language, tmp_path):
    path = installed_wheel.run("-m", "attn_ops", "--pkgconfig-dir").strip()
    source = SOURCE / language
    make = ["make", "--file", str(source / "Makefile"), f"SOURCE_DIR={source}"]
    run(make, cwd=tmp_path, PKG_CONFIG_PATH=path)
    check_program(tmp_path / "attend", tmp_path)
