"""The compiled library is linked as it should be, and faults of wheels are found."""

import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import llama_fast
from build_audit import library_faults, wheel_faults
from llama_fast.ops.backends import library

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(llama_fast.__file__).parent / "libllama_fast.so"
needs_library = pytest.mark.skipif(
    library.missing_reason is not None or "LLAMA_FAST_LIBRARY" in os.environ,
    reason="nothing was compiled, or another library is tested",
)
needs_binutils = pytest.mark.skipif(
    not (shutil.which("readelf") and shutil.which("nm")), reason="no readelf and nm"
)
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
linux = pytest.mark.skipif(platform.system() != "Linux", reason="needs Linux")

# Runs every op, forward and backward, on enough numbers for several threads.
PROGRAM = """
import re
from pathlib import Path
import torch

def mapped():
    files = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    names = r"lib(gomp|omp|iomp5|stdc\\+\\+|c\\+\\+|gcc_s)[-.\\w]*"
    return sorted(f for f in files if re.fullmatch(names, Path(f).name))

torch.randn(512, 512) @ torch.randn(512, 512)
before = mapped()
import llama_fast
from llama_fast.ops.backends import library
from tests.ops.calls import CALLS, total
assert library.missing_reason is None, library.missing_reason
torch.set_num_threads(2)
for call in CALLS.values():
    leaves = call.leaves()
    torch.autograd.grad(total(call.function(*leaves)), leaves)
q = torch.randn(1, 8, 512, 64, requires_grad=True)
llama_fast.attention(q, q, q, causal=True).sum().backward()
print(*before, sep="\\n")
print("after", *mapped(), sep="\\n")
"""


def run_ops(**environment: str) -> str:
    """What `PROGRAM` prints."""
    command = [sys.executable, "-c", PROGRAM]
    env = {**os.environ, **environment}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_library
@needs_binutils
def test_the_library_has_no_fault() -> None:
    assert library_faults(LIBRARY) == []


@linux
@needs_library
def test_the_process_has_the_runtimes_of_torch_alone() -> None:
    before, after = (half.split() for half in run_ops().split("after"))
    assert before == after
    assert sum("omp" in Path(file).name for file in after) == 1, after
    assert sum("stdc++" in Path(file).name for file in after) == 1, after


@linux
@needs_library
def test_no_symbol_of_ours_is_used_by_others_and_no_template_of_theirs_by_us(
    tmp_path: Path,
) -> None:
    run_ops(LD_DEBUG="bindings", LD_DEBUG_OUTPUT=str(tmp_path / "bindings"), LD_BIND_NOW="1")
    binding = re.compile(r"binding file (\S+) \[\d+\] to (\S+) \[\d+\]: \w+ symbol `(\S+)'")
    ours: set[tuple[str, str]] = set()
    for file in tmp_path.iterdir():
        for line in file.open(errors="replace"):
            if LIBRARY.name in line and (found := binding.search(line)):
                user, owner, name = found.groups()
                assert Path(owner).name != LIBRARY.name, line
                if Path(user).name == LIBRARY.name:
                    ours.add((Path(owner).name, name))
    assert len(ours) > 30
    for owner, name in ours:
        if re.match(r"lib(torch|torch_cpu|torch_python|c10)\.so", owner):
            assert name.startswith(("aoti_torch_", "torch_")), (owner, name)
        else:
            assert re.match(r"(lib(stdc\+\+|gcc_s|m|c|dl|pthread)|ld-linux-[\w-]+)\.so", owner), (
                owner,
                name,
            )


def shared_library(folder: Path, source: str, *flags: str) -> Path:
    (folder / "a.cpp").write_text(source)
    made = folder / "a.so"
    command = ["g++", "-shared", "-fPIC", "-O1", str(folder / "a.cpp"), "-o", str(made), *flags]
    subprocess.run(command, check=True)
    return made


@needs_compiler
@needs_binutils
def test_faults_of_libraries_are_found(tmp_path: Path) -> None:
    source = 'int shown() { return 0; }\nextern "C" int llama_fast_shown() { return 0; }'
    assert library_faults(shared_library(tmp_path, source)) == ["exports _Z5shownv"]
    hidden = "-fvisibility=hidden"
    assert library_faults(shared_library(tmp_path, source, hidden)) == []
    assert library_faults(shared_library(tmp_path, source, hidden, "-Wl,-rpath,/opt")) == [
        "has the run path /opt"
    ]
    openmp = "#include <omp.h>\nint threads() { return omp_get_num_threads(); }"
    assert library_faults(shared_library(tmp_path, openmp, hidden, "-fopenmp")) == [
        "is linked with libgomp.so.1",
        "calls OpenMP's omp_get_num_threads",
    ]


@needs_compiler
@needs_binutils
def test_old_versions_of_functions_are_linked(tmp_path: Path) -> None:
    """exp, log and dlsym have newer versions since glibc 2.28, and shared_ptr asks for threads."""
    source = """
#include <cmath>
#include <dlfcn.h>
#include <memory>
double numbers(double x, std::shared_ptr<int> p) {
  auto copy = p;
  return std::exp(x) + std::log(x) + (dlsym(RTLD_DEFAULT, "x") != nullptr) + *copy;
}
"""
    made = shared_library(tmp_path, source, "-include", str(ROOT / "csrc" / "old_glibc.h"))
    text = subprocess.run(["nm", "-D", made], check=True, capture_output=True, text=True).stdout
    versions = [tuple(map(int, v.split("."))) for v in re.findall(r"@GLIBC_([\d.]+)", text)]
    assert re.search(r" U exp@GLIBC", text) and re.search(r" U dlsym@GLIBC", text)
    assert max(versions) <= (2, 28)
    assert "single_threaded" not in text


def wheel_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_faults_of_wheels_are_found(tmp_path: Path) -> None:
    info = "llama_fast-1.0.dist-info"
    metadata = "Metadata-Version: 2.4\nName: llama_fast\nVersion: 1.0\n"
    metadata += "License-Expression: Apache-2.0\nRequires-Dist: torch>=2.10\n"
    metadata += "Requires-Dist: ninja\nRequires-Dist: wheel; extra == 'dev'\n"
    files = {
        "llama_fast/__init__.py": f"# {ROOT}/llama_fast".encode(),
        "llama_fast/tests/test_one.py": b"",
        "tests_of_ours.py": b"",
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Root-Is-Purelib: true\nTag: cp311-cp311-linux_x86_64\n",
        f"{info}/RECORD": b"llama_fast/__init__.py,sha256=AAAA,3\nllama_fast/gone.py,,\n",
    }
    found = wheel_faults(wheel_of(tmp_path / "llama_fast-1.0-cp311-cp311-linux_i686.whl", files))
    assert {
        "has no llama_fast/libllama_fast.so",
        "holds the test llama_fast/tests/test_one.py",
        "installs tests_of_ours.py outside the package",
        "RECORD does not list tests_of_ours.py",
        "RECORD lists llama_fast/gone.py, which is missing",
        "llama_fast/__init__.py is not the file that RECORD lists",
        f"llama_fast/__init__.py holds the builder's path {ROOT}/",
        "is named ['cp311-cp311-linux_i686'], and its tags are ['cp311-cp311-linux_x86_64']",
        "serves cp311-cp311 alone, not every Python",
        "is marked as pure Python",
        "requires ninja, which only the build needs",
        "has no license file",
    } <= set(found)
    assert not any(fault.startswith("requires wheel") for fault in found)
