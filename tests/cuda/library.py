"""C++ of this folder, compiled to a shared library when a test asks for it."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent
CSRC = FOLDER.parents[1] / "csrc"


def compiled(source: str, folder: Path, *more: str) -> ctypes.CDLL:
    """The library made of `source` and files of csrc/cuda; skips where there is no compiler."""
    cxx = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(cxx[0]) is None:
        pytest.skip(f"needs a C++ compiler: {cxx[0]}")
    library = folder / (source + ".so")
    command = [*cxx, "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{CSRC}", "-Wno-unknown-pragmas"]
    command += ["-DLLAMA_FAST_EMULATION=1", "-o", str(library), str(FOLDER / source)]
    subprocess.run([*command, *(str(CSRC / "cuda" / name) for name in more)], check=True)
    return ctypes.CDLL(str(library))
