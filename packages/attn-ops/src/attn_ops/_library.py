"""Where the native files of this installation lie.

An editable install keeps the Python sources elsewhere, so everything starts from the extension
module, which lies at the root of the installed package.
"""

from pathlib import Path

from attn_ops import _native

ROOT = Path(_native.__file__).parent
HOW_TO_ADD_TORCH = (
    "install attn-ops again with its extra torch, or where ATTN_TORCH_INCLUDE is torch's include "
    "folder"
)


def include_dir() -> Path:
    """Return the folder to compile with: it holds `attn/attn.h`."""
    return ROOT / "include"


def library_dir() -> Path:
    """Return the folder of `libattn.so.0`."""
    return ROOT / "lib"


def cmake_dir() -> Path:
    """Return the folder for `CMAKE_PREFIX_PATH` or `attn_DIR`: it holds `attnConfig.cmake`."""
    return library_dir() / "cmake" / "attn"


def pkgconfig_dir() -> Path:
    """Return the folder for `PKG_CONFIG_PATH`: it holds `attn.pc`."""
    return library_dir() / "pkgconfig"


def torch_library() -> Path:
    """Return the file of the torch operators, for `torch.ops.load_library` or `dlopen`.

    It does not exist if this installation was built without torch's headers.
    """
    return library_dir() / "libattn_torch.so"
