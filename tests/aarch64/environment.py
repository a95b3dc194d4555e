"""Makes build/aarch64-env: Python, torch and this project for 64-bit Arm, run by QEMU.

python tests/aarch64/environment.py      (`make aarch64-env`, `make test-aarch64`)

    root/         Debian's Python for arm64 and the libraries it needs
    lib/          the wheels for aarch64 of torch and of what the op tests import
    bin/python    runs that Python under qemu-aarch64; QEMU_CPU chooses the processor (default: max)
    tree/         a copy of this project, with the library compiled for Arm

Nothing is installed on this machine and no rights are needed, apart from a cross-compiler
(Debian: g++-aarch64-linux-gnu). apt-get resolves and downloads packages with a state of its own.
What is there already is kept; the copy and the library are brought up to date.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from build_backend import MINIMUM_TORCH  # noqa: E402

HOME = ROOT / "build" / "aarch64-env"
# Later wheels for aarch64 need CUDA's libraries; the lowest that is supported is a build for CPUs.
TORCH = "torch==" + ".".join(map(str, (*MINIMUM_TORCH, 0)))
# What torch and the op tests import. torch comes without its requirements: pip would take those of
# this machine's processor.
PACKAGES = ("filelock", "fsspec", "jinja2", "networkx", "sympy>=1.13.3", "typing-extensions")
PACKAGES += ("hypothesis", "numpy", "pytest>=8", "pytest-xdist", "setuptools>=77")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
DEBIAN = ("python3", "libgomp1", "libstdc++6")
COPIED = ("benchmarks", "kernels", "llama_fast", "tests")
FILES = ("build_isas.py", "pyproject.toml")


class CannotMake(Exception):
    """Why there is no environment, in one line."""


def run(*command: str | Path, **environment: str) -> None:
    """Runs `command`; `CannotMake` with the end of its output where it fails."""
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise CannotMake(f"{' '.join(map(str, command[:3]))} ... failed:\n{done.stdout[-2000:]}")


def unpack_debian(architecture: str, packages: tuple[str, ...], into: Path) -> None:
    """Unpacks Debian's `packages` for `architecture`, and all that they depend on, into a folder.

    Their installation scripts are not run.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise CannotMake(f"{tool} not found: the environment is made of Debian's packages")
    state = into.with_name(into.name + ".apt")
    for folder in ("lists/partial", "archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()  # nothing is installed
    options = [
        f"APT::Architecture={architecture}",
        f"APT::Architectures={architecture}",
        f"Dir::State::Lists={state}/lists",
        f"Dir::State::status={state}/status",
        f"Dir::Cache={state}",
        f"Dir::Cache::archives={state}/archives",
        "APT::Sandbox::User=root",  # as root, apt would write as a user who may not write here
    ]
    apt = ["apt-get", "-qq", *(word for option in options for word in ("-o", option))]
    run(*apt, "update")
    run(*apt, "install", "--download-only", "--yes", "--no-install-recommends", *packages)
    part = into.with_name(into.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for package in sorted((state / "archives").glob("*.deb")):
        run("dpkg-deb", "-x", package, part)
    os.replace(part, into)
    shutil.rmtree(state)


def find_qemu() -> Path:
    """The emulator: an installed one, or Debian's unpacked here."""
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        if found := shutil.which(name):
            return Path(found)
    folder = HOME / "qemu"
    if not folder.exists():
        asked = ["dpkg", "--print-architecture"]
        here = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        unpack_debian(here, ("qemu-user-static",), folder)
    return folder / "usr" / "bin" / "qemu-aarch64-static"


def make_python() -> Path:
    """The folder of the packages of an emulated Python, which `bin/python` starts."""
    root = HOME / "root"
    if not root.exists():
        unpack_debian("arm64", DEBIAN, root)
    (python,) = (root / "usr" / "bin").glob("python3.[0-9]*[0-9]")
    # As in a virtual environment: Python looks for this file beside or above its executable.
    (HOME / "pyvenv.cfg").write_text(f"home = {python.parent}\n")
    command = HOME / "bin" / "python"
    command.parent.mkdir(exist_ok=True)
    command.write_text(
        f'#!/bin/sh\nQEMU_CPU="${{QEMU_CPU:-max}}" exec "{find_qemu()}" -L "{root}" '
        f'-0 "{command}" "{python}" "$@"\n'
    )
    command.chmod(0o755)
    return HOME / "lib" / python.name / "site-packages"


def install_wheels(into: Path) -> None:
    """torch and `PACKAGES` for aarch64, in the folder `into`."""
    if into.exists():
        return
    version = into.parent.name.removeprefix("python")
    pip: list[str | Path] = [sys.executable, "-m", "pip", "install", "--quiet"]
    pip += ["--only-binary=:all:", "--python-version", version, "--implementation", "cp"]
    pip += [word for platform in PLATFORMS for word in ("--platform", platform)]
    part = HOME / "lib.part"
    shutil.rmtree(part, ignore_errors=True)
    run(*pip, "--target", part, "--no-deps", TORCH)
    run(*pip, "--target", part, *PACKAGES)
    into.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, into)


def copy_tree(tree: Path) -> None:
    """Copies every file of the project that the op tests read, apart from compiled ones."""
    shutil.rmtree(tree, ignore_errors=True)
    compiled = shutil.ignore_patterns("*.so", "_build.json", "__pycache__", "results")
    for folder in COPIED:
        shutil.copytree(ROOT / folder, tree / folder, ignore=compiled)
    for name in FILES:
        shutil.copy(ROOT / name, tree / name)


def compile_library(torch: Path, tree: Path) -> None:
    """Cross-compiles the library against `torch` into `tree`."""
    command = [sys.executable, ROOT / "setup.py", "-q", "build_ext", "--build-lib", tree]
    subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env={
            **os.environ,
            "CXX": os.environ.get("AARCH64_CXX", "aarch64-linux-gnu-g++"),
            "LLAMA_FAST_TARGET": "aarch64",
            "LLAMA_FAST_TORCH": str(torch),
            "LLAMA_FAST_BUILD": "1",
        },
        check=True,
    )


def main() -> None:
    """Makes the environment; an error says what is missing."""
    HOME.mkdir(parents=True, exist_ok=True)
    try:
        packages = make_python()
        install_wheels(packages)
    except CannotMake as error:
        raise SystemExit(f"no environment for aarch64: {error}") from error
    tree = HOME / "tree"
    copy_tree(tree)
    try:
        compile_library(packages / "torch", tree)
    except subprocess.CalledProcessError as error:
        raise SystemExit(error.returncode) from error
    print(f"{HOME / 'bin' / 'python'} (in {tree})")


if __name__ == "__main__":
    main()
