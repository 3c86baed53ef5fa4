"""Which folder may include which: the arrows of ARCHITECTURE.md, read from the sources."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CORE = REPOSITORY / "core" / "src"
SUFFIXES = {".h", ".c", ".cpp", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]', re.MULTILINE)

MAY_INCLUDE = {
    "problem": {"attn", "problem"},
    "parallel": {"attn", "parallel"},
    "cpu": {"problem", "parallel", "cpu"},
    "cuda": {"problem", "cuda"},
    "dispatch": {"attn", "problem", "parallel", "cpu", "cuda", "dispatch"},
    "api": {"attn", "problem", "parallel", "dispatch", "api"},
}


def sources(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)


def includes(path):
    """Return what a file includes, as (delimiter, header)."""
    return INCLUDE.findall(path.read_text())


def test_every_layer_has_a_rule():
    assert {folder.name for folder in CORE.iterdir() if folder.is_dir()} <= set(MAY_INCLUDE)


@pytest.mark.parametrize("layer", [name for name in MAY_INCLUDE if (CORE / name).exists()])
def test_layer_includes_only_what_it_may(layer):
    for path in sources(CORE / layer):
        for delimiter, header in includes(path):
            top = header.split("/")[0]
            if delimiter == '"':
                assert top in MAY_INCLUDE[layer], f"{path} includes {header}"
            else:
                assert top not in MAY_INCLUDE, f"{path} includes {header} as a system header"


def test_public_headers_include_only_themselves_and_the_c_library():
    for path in sources(REPOSITORY / "core" / "include"):
        for delimiter, header in includes(path):
            is_ours = delimiter == '"' and header.startswith("attn/")
            is_c = delimiter == "<" and re.fullmatch(r"[a-z]+\.h", header)
            assert is_ours or is_c, f"{path} includes {header}"


def test_kernels_use_no_standard_library():
    allowed = {"cmath", "cstddef", "cstdint", "cstring", "limits", "type_traits"}
    for path in sources(CORE / "cpu"):
        standard = [
            header
            for delimiter, header in includes(path)
            if delimiter == "<" and "." not in header and header not in allowed
        ]
        assert not standard, f"{path} includes {standard}: a shared template is a shared symbol"


@pytest.mark.parametrize("binding", ["python", "torch"])
def test_binding_sees_the_c_abi_only(binding):
    public = REPOSITORY / "core" / "include"
    folder = REPOSITORY / "bindings" / binding
    own = {path.relative_to(folder).as_posix() for path in sources(folder)}
    for path in sources(folder):
        for delimiter, header in includes(path):
            is_ours = header in own or (path.parent / header).exists() or (public / header).exists()
            is_foreign = delimiter == "<" and not header.startswith("attn/")
            assert is_ours or is_foreign, f"{path} includes {header}"


def test_no_include_climbs_out_of_its_folder():
    for path in [*sources(REPOSITORY / "core"), *sources(REPOSITORY / "bindings")]:
        assert not [header for _, header in includes(path) if ".." in header], path
