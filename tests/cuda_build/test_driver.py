"""What is said where the CUDA driver is absent, too old or not ready: of one that does nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "core/src"
DRIVER = """
#include <stdlib.h>
#include <string.h>

int cuDriverGetVersion(int* version) { *version = atoi(getenv("DRIVER_VERSION")); return 0; }
int cuInit(unsigned flags) { (void)flags; return atoi(getenv("DRIVER_ERROR")); }

static int fail(void) { return 999; }
int cuGetProcAddress_v2(const char* name, void** function, int version, unsigned long long flags,
                        void* status) {
  (void)version, (void)flags, (void)status;
  *function = !strcmp(name, "cuDriverGetVersion")    ? (void*)cuDriverGetVersion
              : !strcmp(name, "cuInit")              ? (void*)cuInit
              : !strcmp(name, "cuGetProcAddress")    ? (void*)cuGetProcAddress_v2
                                                     : (void*)fail;
  return 0;
}
"""
PROGRAM = """
#include <cstdio>

#include "cuda/runtime.h"
#include "problem/refusal.h"

int main() {
  try {
    attn::cuda::device_properties(0);
  } catch (const attn::Refusal& refusal) {
    std::puts(refusal.message);
  }
}
"""
NEWEST = 99000
NO_DEVICE, NOT_READY = 100, 802


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """Compile a program that asks for the first device, beside a driver that it may be given."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    (folder / "main.cpp").write_text(PROGRAM)
    driver = ["cc", "-shared", "-fPIC", "driver.c", "-o", "libcuda.so.1"]
    runtime = [str(SOURCES / file) for file in ("cuda/runtime.cpp", "problem/refusal.cpp")]
    headers = ["-I", str(SOURCES), "-I", str(SOURCES.parent / "include")]
    main = ["nvcc", "-std=c++20", *headers, "main.cpp", *runtime, "-o", "main"]
    for command in (driver, main):
        subprocess.run(command, cwd=folder, check=True)
    return folder / "main"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize(
    ("version", "error", "said"),
    [
        (NEWEST, NO_DEVICE, "got a machine without one"),
        (NEWEST, NOT_READY, "system not yet initialized"),
        (11000, 0, "driver version is insufficient"),
        (0, 0, "got a machine without one"),
    ],
)
def test_says_why_there_is_no_device(program, version, error, said):
    own = {"LD_LIBRARY_PATH": str(program.parent)}
    own |= {"DRIVER_VERSION": str(version), "DRIVER_ERROR": str(error)}
    done = subprocess.run(
        [program], env=os.environ | own, capture_output=True, text=True, check=True, timeout=60
    )
    assert said in done.stdout
