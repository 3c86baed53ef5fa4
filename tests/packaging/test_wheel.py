"""What the wheel holds, what its libraries export, and that builds are reproducible."""

import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from attn_ops import _native
from wheels import run

pytestmark = pytest.mark.slow

CONTENTS = Path(__file__).with_name("wheel_contents.txt")

C_ABI = {
    "attn_attention_backward",
    "attn_attention_backward_workspace",
    "attn_attention_forward",
    "attn_attention_forward_workspace",
    "attn_cpu_isa",
    "attn_cpu_isas",
    "attn_cuda_device_count",
    "attn_has_cuda",
    "attn_linear",
    "attn_linear_workspace",
    "attn_merge_backward",
    "attn_merge_forward",
    "attn_num_threads",
    "attn_step",
    "attn_step_workspace",
    "attn_version",
}


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def dynamic_section(library, tag):
    """Return the values of one tag (NEEDED, RUNPATH, SONAME) of a shared library."""
    printed = run(["readelf", "--dynamic", "--wide", str(library)], cwd=library.parent)
    lines = [line for line in printed.splitlines() if f"({tag})" in line]
    return {line.partition("[")[2].rstrip("]") for line in lines}


def strong_symbols(library):
    """Return what a shared library defines for others, but for weak C++ symbols."""
    options = ["--dynamic", "--defined-only", "--format=posix"]
    printed = run(["nm", *options, str(library)], cwd=library.parent)
    symbols = [line.split()[:2] for line in printed.splitlines()]
    return {name.partition("@")[0] for name, kind in symbols if kind in "TDBR"}


def test_wheel_holds_what_is_listed(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(archive.namelist())
    abi = f"cpython-{sys.version_info.major}{sys.version_info.minor}-x86_64-linux-gnu"
    listed = sorted(CONTENTS.read_text().replace("{abi}", abi).splitlines())
    assert names == listed, f"if the change is meant, mend {CONTENTS.name}"


def test_source_distribution_holds_no_file_twice(wheel):
    (sdist,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    assert len(names) == len(set(names))


def test_core_exports_the_c_abi_only(unpacked):
    library = unpacked / "attn_ops" / "lib" / "libattn.so.0"
    assert strong_symbols(library) == C_ABI
    assert dynamic_section(library, "SONAME") == {"libattn.so.0"}
    assert not {name for name in dynamic_section(library, "NEEDED") if "omp" in name}


def test_core_names_no_source_file(unpacked):
    # Objects that ccache compiled in another folder are then the same as those compiled anew.
    assert b"core/src" not in (unpacked / "attn_ops" / "lib" / "libattn.so.0").read_bytes()


def test_extension_exports_its_entry_point_only(unpacked):
    (extension,) = (unpacked / "attn_ops").glob("_native.*.so")
    assert strong_symbols(extension) == {"PyInit__native"}
    assert dynamic_section(extension, "RUNPATH") == {"$ORIGIN/lib"}


def test_torch_library_needs_torch_by_name_only(unpacked):
    library = unpacked / "attn_ops" / "lib" / "libattn_torch.so"
    needed = dynamic_section(library, "NEEDED")
    assert {"libattn.so.0", "libtorch_cpu.so"} <= needed
    assert not needed & {"libc10.so", "libtorch.so", "libtorch_python.so"}
    assert dynamic_section(library, "RUNPATH") == {"$ORIGIN"}


def test_libraries_are_the_same_bytes_as_those_built_in_this_tree(unpacked, tmp_path):
    built_here = Path(_native.__file__).parent
    for library in (Path(_native.__file__).name, "lib/libattn.so.0", "lib/libattn_torch.so"):
        # The wheel was built elsewhere, and stripped.
        stripped = tmp_path / Path(library).name
        run(["strip", str(built_here / library), "-o", str(stripped)], cwd=tmp_path)
        assert stripped.read_bytes() == (unpacked / "attn_ops" / library).read_bytes(), library
