"""Finds faults of a compiled library and of a wheel that users would notice only later.

    python build_audit.py dist/*.whl llama_fast/libllama_fast.so

Prints each fault in a line and ends with 1 if there are any. Symbol versions, on which the tag
manylinux_2_28 depends, are auditwheel's business (build_wheels.py).
"""

from __future__ import annotations

import base64
import email.parser
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent
LIBRARY = "llama_fast/libllama_fast.so"

# What the library may be linked with: torch, the C++ and C runtimes that torch uses too, and what
# CUDA's static runtime needs. No OpenMP: kernels run in torch's threads, and a second OpenMP in a
# process would start a second set of threads.
TORCH = {"libtorch.so", "libtorch_cpu.so", "libc10.so"}
RUNTIME = {"libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6"}
LINKED = TORCH | RUNTIME | {"libdl.so.2", "librt.so.1", "libpthread.so.0"}
LOADER = re.compile(r"ld-linux-[\w-]+\.so\.\d")
# Functions of C have this prefix where they are exported (csrc/exports.map).
EXPORTED = "llama_fast_"
OPENMP = re.compile(r"(GOMP|omp|kmpc|__kmpc)_")
# What belongs to the build alone.
BUILD_ONLY = ("pybind11", "ninja", "setuptools", "wheel")


def library_faults(library: Path) -> list[str]:
    """What is wrong with how `library` is linked, one line each. Needs readelf and nm."""
    faults = []
    dynamic = _run("readelf", "--wide", "--dynamic", str(library))
    for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic):
        if name not in LINKED and not LOADER.fullmatch(name):
            faults.append(f"is linked with {name}")
    if runs := re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", dynamic):
        faults.append(f"has the run path {runs[0]}")
    exported = {line.split()[-1] for line in _nm(library, "--defined-only")}
    for name in sorted(n for n in exported if not n.startswith(EXPORTED)):
        faults.append(f"exports {name}")
    for name in sorted({line.split()[-1] for line in _nm(library, "--undefined-only")}):
        if OPENMP.match(name):
            faults.append(f"calls OpenMP's {name.partition('@')[0]}")
        elif name.startswith("_Z") and "@" not in name:
            # libstdc++'s have versions: this is a copy that torch's libraries happen to export.
            faults.append(f"takes {name} from torch")
    return faults


def _nm(library: Path, which: str) -> list[str]:
    return _run("nm", "--dynamic", which, str(library)).splitlines()


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def wheel_faults(wheel: Path) -> list[str]:
    """What is wrong with the files of `wheel`, one line each."""
    with zipfile.ZipFile(wheel) as archive:
        files = {n: archive.read(n) for n in archive.namelist() if not n.endswith("/")}
    (info,) = {n.split("/")[0] for n in files if n.split("/")[0].endswith(".dist-info")}
    faults = [*_misplaced(files, info), *_unlike_the_record(files, f"{info}/RECORD")]
    faults += _wrong_tags(wheel, files[f"{info}/WHEEL"].decode())
    faults += _wrong_metadata(files[f"{info}/METADATA"].decode(), wheel.name.split("-")[1])
    if not any(name.startswith(f"{info}/licenses/") for name in files):
        faults.append("has no license file")
    for path in _own_paths():
        named = [name for name, data in files.items() if path.encode() in data]
        faults += [f"{name} holds the builder's path {path}" for name in named]
    if LIBRARY in files:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "library.so"
            library.write_bytes(files[LIBRARY])
            faults += [f"{LIBRARY} {fault}" for fault in library_faults(library)]
    return faults


def _misplaced(files: Iterable[str], info: str) -> list[str]:
    faults = [] if LIBRARY in files else [f"has no {LIBRARY}"]
    for name in sorted(files):
        path = Path(name)
        if path.parts[0] not in ("llama_fast", info):
            faults.append(f"installs {name} outside the package")
        elif "tests" in path.parts or path.name.startswith("test_"):
            faults.append(f"holds the test {name}")
        elif path.suffix in (".pyc", ".cpp", ".h", ".o") or (
            ".so" in path.suffixes and name != LIBRARY
        ):
            faults.append(f"holds {name}")
    return faults


def _unlike_the_record(files: dict[str, bytes], record: str) -> list[str]:
    """RECORD lists every other file, with its hash and size."""
    rows = [line.rsplit(",", 2) for line in files[record].decode().splitlines()]
    listed = {name.strip('"'): (digest, size) for name, digest, size in rows}
    faults = [f"RECORD does not list {name}" for name in sorted(set(files) - set(listed))]
    faults += [
        f"RECORD lists {name}, which is missing" for name in sorted(set(listed) - set(files))
    ]
    for name in sorted(set(files) & set(listed) - {record}):
        sha = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).decode().rstrip("=")
        if listed[name] != (f"sha256={sha}", str(len(files[name]))):
            faults.append(f"{name} is not the file that RECORD lists")
    return faults


def _wrong_tags(wheel: Path, text: str) -> list[str]:
    """The name and the file WHEEL say the same: any Python, and one platform."""
    facts = email.parser.Parser().parsestr(text)
    python, abi, platform = wheel.stem.split("-")[-3:]
    named = {f"{python}-{abi}-{name}" for name in platform.split(".")}
    tags = set(facts.get_all("Tag", []))
    faults = [] if named == tags else [f"is named {sorted(named)}, and its tags are {sorted(tags)}"]
    if (python, abi) != ("py3", "none"):
        faults.append(f"serves {python}-{abi} alone, not every Python")
    if facts["Root-Is-Purelib"] != "false":
        faults.append("is marked as pure Python")
    return faults


def _wrong_metadata(text: str, version: str) -> list[str]:
    facts = email.parser.Parser().parsestr(text)
    wanted = {"Name": "llama_fast", "Version": version, "License-Expression": "Apache-2.0"}
    faults = [f"{k} is {facts[k]}, not {v}" for k, v in wanted.items() if facts[k] != v]
    for requirement in facts.get_all("Requires-Dist", []):
        name = re.split(r"[^\w-]", requirement)[0]
        if name in BUILD_ONLY and "extra ==" not in requirement:
            faults.append(f"requires {name}, which only the build needs")
    return faults


def _own_paths() -> list[str]:
    """What the paths of this machine begin with that no file of a wheel may name."""
    folders = {str(path) for path in (ROOT, Path(sys.prefix), Path.home()) if path != Path("/")}
    # pip's isolated builds run in a temporary folder.
    return [*(f"{folder}/" for folder in sorted(folders)), f"{tempfile.gettempdir()}/pip-"]


def main() -> None:
    """The command line of this file."""
    found = 0
    for path in map(Path, sys.argv[1:]):
        faults = wheel_faults(path) if path.suffix == ".whl" else library_faults(path)
        print("\n".join([f"{path}: {fault}" for fault in faults] or [f"{path}: no fault found"]))
        found += len(faults)
    raise SystemExit(min(found, 1))


if __name__ == "__main__":
    main()
