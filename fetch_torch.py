"""Unpacks what a build needs of some release of torch: its headers and libraries, not the package.

    python fetch_torch.py                                              the lowest that is supported
    python fetch_torch.py 2.11.0
    python fetch_torch.py 2.10.0 --platform manylinux_2_28_aarch64     to cross-compile

pip downloads the wheel (0.5 to 1 GB), of which `build/torch-VERSION[-PLATFORM]/torch` keeps half;
the last line of the output is that folder. LLAMA_FAST_TORCH=that folder builds against it. Where it
is there already, nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from build_backend import BUILD_NEEDS, MINIMUM_TORCH

ROOT = Path(__file__).resolve().parent
LOWEST = ".".join(map(str, (*MINIMUM_TORCH, 0)))
# The libraries of torch that ours is linked with. The others are the larger part of a wheel.
LIBRARIES = ("libtorch.so", "libtorch_cpu.so", "libc10.so")


class CannotFetch(Exception):
    """Why there is no torch to build against, in one line."""


def fetch(version: str = LOWEST, platform: str | None = None, python: str | None = None) -> Path:
    """The folder of torch `version`'s headers and libraries, downloaded where it is not there yet.

    `platform` and `python` are pip's (``manylinux_2_28_aarch64``, ``3.12``); default: this
    machine's. Raises `CannotFetch`, after which nothing of the folder is there.
    """
    name = "-".join(filter(None, ["torch", version, platform]))
    folder = ROOT / "build" / name
    torch = folder / "torch"
    if is_complete(torch):
        return torch
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=name + ".", dir=ROOT / "build") as temporary:
        try:
            wheel = download(version, platform, python, Path(temporary))
            unpack(wheel, Path(temporary) / "unpacked")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(Path(temporary) / "unpacked", folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise CannotFetch(
                f"torch {version} cannot be unpacked into {folder}: {error}"
            ) from error
    if not is_complete(torch):
        shutil.rmtree(folder)
        raise CannotFetch(
            f"the wheel of torch {version} lacks one of {', '.join((*BUILD_NEEDS, *LIBRARIES))}"
        )
    return torch


def is_complete(torch: Path) -> bool:
    """Whether the folder `torch` has everything that a build needs."""
    needs = [*BUILD_NEEDS, *(f"lib/{library}" for library in LIBRARIES)]
    return all((torch / part).exists() for part in needs)


def download(version: str, platform: str | None, python: str | None, into: Path) -> Path:
    """The wheel of torch `version`, which pip puts into the folder `into`."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--retries", "5"]
    command += [
        "--progress-bar=off",
        "--only-binary=:all:",
        "--dest",
        str(into),
        f"torch=={version}",
    ]
    command += ["--platform", platform] if platform else []
    command += ["--python-version", python] if python else []
    print(f"downloading torch {version}{f' for {platform}' if platform else ''}", file=sys.stderr)
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise CannotFetch(f"pip could not download torch {version} (its message is above)")
    (wheel,) = into.glob("*.whl")
    return wheel


def unpack(wheel: Path, into: Path) -> None:
    """The parts of `wheel` that a build needs, in `into`/torch."""
    libraries = {f"torch/lib/{library}" for library in LIBRARIES}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("torch/include/") or name in libraries or name == "torch/version.py":
                archive.extract(name, into)


def main() -> None:
    """The command line of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version", nargs="?", default=LOWEST, help=f"default: {LOWEST}")
    parser.add_argument("--platform", help="as of pip download, for example manylinux_2_28_aarch64")
    parser.add_argument("--python", help="as pip's --python-version, for example 3.12")
    options = parser.parse_args()
    try:
        print(fetch(options.version, options.platform, options.python))
    except CannotFetch as error:
        raise SystemExit(f"fetch_torch: {error}") from error


if __name__ == "__main__":
    main()
