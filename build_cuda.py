"""Finds the CUDA toolkit and chooses the GPU architectures to compile for (see build_native.py)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from build_backend import BadSetting, CannotBuild, NotWanted

# The architectures of A100, H100 (with its wgmma and TMA instructions) and B200. A binary for one
# also runs on later architectures with the same first digit, but not one whose name ends in "a".
CUDA_ARCHITECTURES = ("80", "90a", "100")

# The kernels use matrix instructions on bfloat16, which came with this one.
OLDEST_ARCHITECTURE = 80

_VARIABLE = "LLAMA_FAST_CUDA_ARCHS"
_SPELLING = re.compile(r"(?:sm_|compute_)?(\d{1,2}\.\d|\d{2,3})([af]?)(\+ptx)?", re.IGNORECASE)


def wanted_architectures() -> list[str] | None:
    """The architectures that LLAMA_FAST_CUDA_ARCHS names, such as "90a" or "80+PTX"; None: unset.

    Raises:
        BadSetting: one is not spelled as an architecture.
    """
    value = os.environ.get(_VARIABLE, "")
    names = []
    for word in re.split(r"[;,\s]+", value.strip()):
        match = _SPELLING.fullmatch(word)
        if match:
            number, suffix, ptx = match.groups()
            names.append(number.replace(".", "") + suffix.lower() + ("+PTX" if ptx else ""))
        elif word:
            raise BadSetting(
                f"{_VARIABLE}={value}: expected architectures such as 80;90a;100, got {word!r}"
            )
    return list(dict.fromkeys(names)) or None


def _known(nvcc: Path) -> list[int]:
    """Numbers of the architectures that this nvcc compiles for and the kernels can use."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    numbers = sorted(map(int, re.findall(r"^compute_(\d+)$", listed, re.MULTILINE)))
    return [number for number in numbers if number >= OLDEST_ARCHITECTURE]


def _compiles(architecture: str, known: list[int]) -> bool:
    name = architecture.removesuffix("+PTX")
    number, suffix = int(name.rstrip("af")), name.lstrip("0123456789")
    # nvcc lists no names with a suffix. "a" came with 90, "f" with 100.
    return number in known and number >= {"": 0, "a": 90, "f": 100}[suffix]


def architectures_for(nvcc: Path) -> list[str]:
    """What LLAMA_FAST_CUDA_ARCHS asks for, or those of `CUDA_ARCHITECTURES` that nvcc knows.

    Raises:
        CannotBuild: nvcc knows none of `CUDA_ARCHITECTURES`.
        BadSetting: LLAMA_FAST_CUDA_ARCHS names one that nvcc does not compile for.
    """
    wanted, known = wanted_architectures(), _known(nvcc)
    if wanted is None:
        chosen = [name for name in CUDA_ARCHITECTURES if _compiles(name, known)]
        if not chosen:
            raise CannotBuild(f"{nvcc} knows none of sm_{', sm_'.join(CUDA_ARCHITECTURES)}")
        return chosen
    for name in wanted:
        if not _compiles(name, known):
            names = ", ".join(f"{n}, {n}a" if n >= 90 else str(n) for n in known) or "none"
            raise BadSetting(
                f"{_VARIABLE}={os.environ[_VARIABLE]}: expected architectures that {nvcc} compiles "
                f"for and the kernels can use ({names}), got {name}"
            )
    return wanted


def gencode(architecture: str) -> list[str]:
    """nvcc's options for an architecture; "+PTX" also stores code that later GPUs compile."""
    name = architecture.removesuffix("+PTX")
    codes = f"[sm_{name},compute_{name}]" if architecture.endswith("+PTX") else f"sm_{name}"
    return ["-gencode", f"arch=compute_{name},code={codes}"]


def find_cuda(torch_cuda: str | None, csrc: Path) -> tuple[Path, list[str]]:
    """Root of the CUDA toolkit, and the architectures to compile for.

    Args:
        torch_cuda: the CUDA version that torch was built with, None if it was built without.
        csrc: folder of the sources.

    Raises:
        NotWanted: no CUDA kernels are asked for, or torch could not use them.
        CannotBuild: there is no toolkit, or it is too old.
        BadSetting: LLAMA_FAST_CUDA_ARCHS is wrong.
    """
    wish = os.environ.get("LLAMA_FAST_CUDA")
    wanted_architectures()  # a misspelled value is an error wherever it is set
    if wish == "0":
        raise NotWanted("LLAMA_FAST_CUDA=0")
    if not any((csrc / "cuda").glob("*.cu")):
        raise NotWanted("no CUDA sources")
    if torch_cuda is None and wish != "1":
        raise NotWanted("torch was built without CUDA (LLAMA_FAST_CUDA=1 compiles it anyway)")
    nvcc = find_nvcc()
    return nvcc.parents[1], architectures_for(nvcc)


def find_nvcc() -> Path:
    """The compiler of a CUDA toolkit."""
    on_path = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    homes += [os.path.dirname(os.path.dirname(os.path.realpath(on_path)))] if on_path else []
    for home in filter(None, [*homes, "/usr/local/cuda"]):
        nvcc = os.path.join(home, "bin", "nvcc")
        # An nvcc on the PATH may be a wrapper that lives outside its toolkit.
        if os.access(nvcc, os.X_OK) and os.path.exists(os.path.join(home, "nvvm")):
            return Path(nvcc)
    raise CannotBuild("no CUDA toolkit found (set CUDA_HOME)")
