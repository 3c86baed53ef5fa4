"""Print where this installation keeps what other build systems need: `python -m attn_ops`."""

import argparse
from pathlib import Path

from attn_ops import __version__, _library

QUERIES = {
    "include-dir": (_library.include_dir, "folder with attn/attn.h"),
    "library-dir": (_library.library_dir, "folder with libattn.so.0"),
    "cmake-dir": (_library.cmake_dir, "folder with attnConfig.cmake, for attn_DIR"),
    "pkgconfig-dir": (_library.pkgconfig_dir, "folder with attn.pc, for PKG_CONFIG_PATH"),
    "torch-library": (_library.torch_library, "file that registers torch.ops.attn_ops"),
    "version": (lambda: __version__, "release of this distribution"),
}


def main() -> None:
    """Print the answer to one query."""
    parser = argparse.ArgumentParser(prog="python -m attn_ops", description=__doc__)
    choice = parser.add_mutually_exclusive_group(required=True)
    for name, (_, meaning) in QUERIES.items():
        choice.add_argument(
            f"--{name}", action="store_const", const=name, dest="query", help=f"print the {meaning}"
        )
    query = parser.parse_args().query
    answer, _ = QUERIES[query]
    place = answer()
    if isinstance(place, Path) and not place.exists():
        parser.exit(
            1,
            f"{parser.prog} --{query}: expected {place}, which this installation was built "
            f"without; {_library.HOW_TO_ADD_TORCH}\n",
        )
    print(place)


if __name__ == "__main__":
    main()
