"""Print the folder of the installed torch's headers, or nothing; never imports torch."""

import importlib.util
import sys
import sysconfig
from pathlib import Path

# pip's build isolation hides the environment that it installs into, where torch would be.
sys.path.append(sysconfig.get_path("platlib"))
spec = importlib.util.find_spec("torch")
if spec is not None and spec.origin is not None:
    print(Path(spec.origin).parent / "include")
