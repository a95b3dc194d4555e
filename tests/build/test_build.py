"""The build on a small source tree with the real setup.py: what it makes, skips and reports."""

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch  # (the library links against torch's, which have to be loaded first)

from build_backend import MINIMUM_TORCH

ROOT = Path(__file__).resolve().parents[2]

DISPATCH = """
#include "cpu/kernel.h"
extern "C" __attribute__((visibility("default"))) int sum_of_kernels() {
  int sum = portable_kernel();
#ifdef LLAMA_FAST_HAVE_AVX2
  sum += avx2_kernel();
#endif
#ifdef LLAMA_FAST_HAVE_AVX512
  sum += avx512_kernel();
#endif
#ifdef LLAMA_FAST_HAVE_AVX512_BF16
  sum += avx512_bf16_kernel();
#endif
#ifdef LLAMA_FAST_HAVE_AMX_BF16
  sum += amx_bf16_kernel();
#endif
  return sum;
}
"""
# Each copy says which instruction sets it was compiled for.
KERNEL = """
#include "cpu/kernel.h"
#define JOIN(a, b) a##_##b
#define NAME(isa) JOIN(isa, kernel)
int NAME(LLAMA_FAST_ISA)() {
#if defined(__AMX_BF16__)
  return 10000;
#elif defined(__AVX512BF16__)
  return 1000;
#elif defined(__AVX512F__)
  return 100;
#elif defined(__AVX2__)
  return 10;
#else
  return 1;
#endif
}
"""
HEADER = """
int portable_kernel();
int avx2_kernel();
int avx512_kernel();
int avx512_bf16_kernel();
int amx_bf16_kernel();
"""
OPS = """
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
extern "C" __attribute__((visibility("default"))) int cpu_device() {
  return aoti_torch_device_type_cpu();
}
"""
CUDA_KERNEL = """
__global__ void add_one(float* x) { x[threadIdx.x] += 1.0f; }
extern "C" __attribute__((visibility("default"))) void launch(float* x) { add_one<<<1, 32>>>(x); }
"""


class Tree:
    """A copy of the build files with small C++ sources."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("setup.py", "build_native.py", "build_backend.py", "pyproject.toml"):
            shutil.copy(ROOT / name, root / name)
        (root / "README.md").write_text("A small tree.")
        (root / "LICENSE").write_text("")
        (root / "llama_fast").mkdir()
        (root / "llama_fast" / "__init__.py").write_text("")
        shutil.copy(ROOT / "llama_fast" / "_version.py", root / "llama_fast")
        for folder in ("kernels", "benchmarks"):
            shutil.copytree(ROOT / folder, root / folder)
        (root / "csrc").mkdir()
        self.write("ops.cpp", OPS)
        self.write("cpu/dispatch.cpp", DISPATCH)
        self.write("cpu/kernel.cpp", KERNEL)
        self.write("cpu/kernel.h", HEADER)
        self.library = root / "llama_fast" / "libllama_fast.so"

    def write(self, path: str, text: str) -> None:
        """A file under csrc/."""
        (self.root / "csrc" / path).parent.mkdir(exist_ok=True)
        (self.root / "csrc" / path).write_text(text)

    def build(self, expect: int = 0, **environment: str) -> str:
        """Output of `setup.py build_ext --inplace`, which has to end with code `expect`."""
        env = {k: v for k, v in os.environ.items() if k == "PATH" or not k.startswith("LLAMA_FAST")}
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=self.root,
            env={**env, **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    def part(self, name: str) -> tuple[bool, str]:
        """What _build.json says of a part: built, and what or why not."""
        facts = json.loads((self.root / "llama_fast" / "_build.json").read_text())
        return facts["parts"][name]["built"], facts["parts"][name]["detail"]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture(scope="session")
def compiler() -> None:
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("no C++ compiler")


@pytest.mark.usefixtures("compiler")
def test_builds_every_instruction_set(tree: Tree) -> None:
    table = tree.build()
    library = ctypes.CDLL(str(tree.library))
    expected = 1
    if platform.machine() == "x86_64":
        names = ("avx2", "avx512", "avx512_bf16", "amx_bf16")
        values = (10, 100, 1000, 10000)
        expected += sum(v for n, v in zip(names, values, strict=True) if n in table)
        assert "avx2" in table
    assert library.sum_of_kernels() == expected
    assert library.cpu_device() == 0  # a symbol of torch's, found without a run path
    assert tree.part("CUDA") == (False, "no CUDA sources")
    for name in ("ops library", "CUDA"):
        assert sum(line.startswith(f"  {name} ") for line in table.splitlines()) == 1


@pytest.mark.usefixtures("compiler")
def test_second_build_compiles_only_what_changed(tree: Tree) -> None:
    tree.build()
    objects = tree.root / "build" / "native"
    before = {p.name: p.stat().st_mtime_ns for p in objects.glob("*.o")}
    assert "ninja: no work to do" in tree.build()
    tree.write("cpu/kernel.h", HEADER + "// one more line\n")
    tree.build()
    changed = {n for n, t in before.items() if (objects / n).stat().st_mtime_ns != t}
    assert changed == {n for n in before if n.startswith("cpu_")}


@pytest.mark.usefixtures("compiler")
def test_library_is_replaced_in_one_step(tree: Tree) -> None:
    tree.build()
    with open(tree.library, "rb") as held:  # as a running process holds it
        before = held.read()
        tree.write("cpu/kernel.cpp", KERNEL.replace("return 1;", "return 2;"))
        tree.build()
        held.seek(0)
        assert held.read() == before
    assert tree.library.read_bytes() != before
    assert not [p for p in tree.library.parent.iterdir() if p.name.startswith(".")]


@pytest.mark.usefixtures("compiler")
def test_broken_source_leaves_no_old_library_behind(tree: Tree) -> None:
    tree.build()
    tree.write("cpu/kernel.cpp", KERNEL + "this is not C++\n")
    table = tree.build()
    built, why = tree.part("ops library")
    assert not built and "kernel.cpp" in why and "error:" in why
    assert why in table and not tree.library.exists()
    assert "could not build: ops library" in tree.build(expect=1, LLAMA_FAST_BUILD="1")


def test_without_a_compiler_the_build_succeeds_and_says_why(tree: Tree) -> None:
    table = tree.build(CXX="no-such-compiler")
    built, why = tree.part("ops library")
    assert not built and "no-such-compiler" in why and why in table
    assert not tree.library.exists()
    tree.build(expect=1, CXX="no-such-compiler", LLAMA_FAST_BUILD="1")


def test_build_can_be_switched_off(tree: Tree) -> None:
    tree.build(LLAMA_FAST_BUILD="0")
    assert tree.part("ops library") == (False, "LLAMA_FAST_BUILD=0")
    assert not (tree.root / "build" / "native").exists()


@pytest.mark.usefixtures("compiler")
def test_sanitizer_build_stands_apart(tree: Tree) -> None:
    tree.build(LLAMA_FAST_SANITIZE="1")
    library = tree.root / "build" / "sanitize" / "libllama_fast.so"
    assert b"__asan_init" in library.read_bytes()
    assert b"__ubsan_handle" in library.read_bytes()
    assert not tree.library.exists()


@pytest.mark.usefixtures("compiler")
def test_cuda_is_left_out_with_a_reason(tree: Tree) -> None:
    tree.write("cuda/add.cu", CUDA_KERNEL)
    tree.build(LLAMA_FAST_CUDA="0")
    assert tree.part("CUDA") == (False, "LLAMA_FAST_CUDA=0")
    if torch.version.cuda is None:
        tree.build()
        assert "torch was built without CUDA" in tree.part("CUDA")[1]
    assert tree.part("ops library")[0]


needs_nvcc = pytest.mark.skipif(
    not (shutil.which("nvcc") or os.path.exists("/usr/local/cuda/bin/nvcc")), reason="no nvcc"
)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_cuda_sources_are_compiled_into_the_library(tree: Tree) -> None:
    tree.write("cuda/add.cu", CUDA_KERNEL)
    tree.build(LLAMA_FAST_CUDA="1", LLAMA_FAST_BUILD="1")
    built, detail = tree.part("CUDA")
    assert built and "sm_80" in detail
    assert ctypes.CDLL(str(tree.library)).launch  # loads without a GPU, too
    assert b"add_one" in tree.library.read_bytes()


@needs_nvcc
@pytest.mark.usefixtures("compiler")
def test_cuda_source_that_fails_does_not_cost_the_cpu_kernels(tree: Tree) -> None:
    tree.write("cuda/add.cu", "this is not CUDA\n")
    tree.build(LLAMA_FAST_CUDA="1")
    built, why = tree.part("CUDA")
    assert not built and "add.cu" in why
    assert tree.part("ops library")[0] and ctypes.CDLL(str(tree.library)).sum_of_kernels() > 0
    assert "could not build: CUDA" in tree.build(
        expect=1, LLAMA_FAST_CUDA="1", LLAMA_FAST_BUILD="1"
    )


def test_the_oldest_torch_is_the_same_for_the_package_and_its_build() -> None:
    """`MINIMUM_TORCH` is also what TORCH_TARGET_VERSION is made of."""
    oldest = ".".join(map(str, MINIMUM_TORCH))
    assert f'"torch>={oldest}"' in (ROOT / "pyproject.toml").read_text()
