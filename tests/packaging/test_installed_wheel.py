"""The wheel in an environment without torch: it computes, and says where things lie."""

from pathlib import Path

import pytest

from wheels import REPOSITORY

pytestmark = pytest.mark.slow


def test_array_tests_pass_without_torch(installed_wheel):
    tests = ["tests/attn_ops/test_array.py", "tests/bindings/python/test_attention.py"]
    printed = installed_wheel.run(
        "-m", "pytest", "--quiet", "-p", "no:cacheprovider", *tests, cwd=REPOSITORY
    )
    assert " passed" in printed
    assert "skipped" not in printed


def test_torch_names_say_what_to_install(installed_wheel):
    printed = installed_wheel.run(
        "-c",
        "import attn_ops\n"
        "try: attn_ops.memory_efficient_attention\n"
        "except ImportError as error: print(error)\n"
        "try: from attn_ops import fmha\n"
        "except ImportError as error: print(error)\n"
        "print(attn_ops.__all__)\n",
    )
    first, second, names = printed.splitlines()
    assert first.startswith("attn_ops: memory_efficient_attention needs torch 2.10 or newer")
    assert second.startswith("attn_ops: fmha needs torch 2.10 or newer")
    assert names == "['__version__', 'array']"


@pytest.mark.parametrize(
    ("query", "content"),
    [
        ("--include-dir", "attn/attn.h"),
        ("--library-dir", "libattn.so.0"),
        ("--cmake-dir", "attnConfig.cmake"),
        ("--pkgconfig-dir", "attn.pc"),
        ("--torch-library", ""),
    ],
)
def test_module_prints_existing_places(installed_wheel, query, content):
    place = Path(installed_wheel.run("-m", "attn_ops", query).strip())
    assert (place / content).exists()
    assert installed_wheel.python.parent.parent in place.parents


def test_module_prints_the_release(installed_wheel):
    assert installed_wheel.run("-m", "attn_ops", "--version").strip() in installed_wheel.wheel.name
